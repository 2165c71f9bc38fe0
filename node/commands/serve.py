"""`holdfast serve`: run a node until it is told to stop."""

from __future__ import annotations

import os
import sys

import click

from node import settings as node_settings
from node.errors import EXIT_DONE


@click.command("serve")
@click.option("--data", metavar="DIR", help="The data directory of this node.")
@click.option("--config", "config_path", metavar="FILE", help="Instead of DIR/holdfast.toml.")
@click.option("--join", is_flag=True, default=None, help="Join a cluster, with a token.")
@click.option("--listen", metavar="HOST", help="The address to listen on [127.0.0.1].")
@click.option("--advertise", metavar="HOST", help="The host that others reach this node under.")
@click.option("--port", metavar="N", help="For clients [7070].")
@click.option("--peer-port", metavar="N", help="For chunks between nodes [7071].")
@click.option("--raft-port", metavar="N", help="For metadata between nodes [7072].")
@click.option("--zone", metavar="NAME", help="Nodes that fail together.")
@click.option("--weight", metavar="N", help="Relative capacity, in gigabytes [100].")
@click.option("--replicas", metavar="N", help="Copies of each chunk, for a new cluster [3].")
@click.option("--tls-cert", metavar="FILE", help="TLS for clients: the certificate, PEM.")
@click.option("--tls-key", metavar="FILE", help="TLS for clients: the key, PEM.")
@click.option("--peer-tls", metavar="MODE", help="TLS between nodes: auto, on or off [auto].")
@click.option("--admin-key-file", metavar="FILE", help="Write the first admin key there.")
@click.option("--open-bucket", metavar="NAME", help="A bucket open to everybody; loopback only.")
@click.option("--log-format", metavar="FORM", help="text or json [text].")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error [info].")
@click.option("--with-parent", type=int, hidden=True, help="End when this process does.")
def command(*, config_path: str | None, with_parent: int | None, **flags: str | bool | None) -> int:
    """Run a node on the data directory DIR until SIGTERM or Ctrl-C.

    On an empty directory this founds a cluster of one node, or with --join becomes a node of the
    cluster that made the token in the file HOLDFAST_JOIN_TOKEN_FILE (else it is asked for). Every
    later start continues. Each option is also a setting: see docs/operations/README.md.
    """
    settings = node_settings.load(flags, os.environ, config_path=config_path)
    # Imported here: wrong settings are reported without loading a whole node.
    from node import logs, process  # noqa: PLC0415
    from node.lifecycle import serve  # noqa: PLC0415

    if with_parent is not None:
        process.end_with_parent(with_parent)
    logs.configure(log_format=settings.log_format, level=settings.log_level)
    serve(settings, ask_token=_ask_token, say=_say)
    return EXIT_DONE


def _ask_token() -> str | None:
    """The join token from the terminal; None where nobody can be asked."""
    if not sys.stdin.isatty():
        return None
    return str(click.prompt("Join token", hide_input=True))


def _say(line: str) -> None:
    """To whoever watches the start; logs go to standard error."""
    click.echo(line)
