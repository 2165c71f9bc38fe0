"""The command line: `holdfast COMMAND`. Each command is a module that is imported when asked for.

Every failure ends in one sentence on standard error and an exit code that scripts can rely on: 0
done, 1 failed, 2 wrong usage, 3 not found, 5 try again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import click

from node.commands.text import printable
from node.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_TRY_AGAIN,
    EXIT_USAGE,
    NodeError,
)

_EXIT_INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C has ended."""

_HOW_TO_GIVE_A_KEY = "--key-file, HOLDFAST_KEY_FILE or a profile give it"

_COMMANDS = {
    "serve": ("serve", "Run a node of a cluster."),
    "dev": ("dev", "Run a whole cluster on this machine, for a first try."),
    "put": ("put", "Store files, folders or a stream."),
    "get": ("get", "Fetch files or folders."),
    "cat": ("cat", "Write files to standard output."),
    "ls": ("ls", "List buckets or files."),
    "rm": ("rm", "Remove files."),
    "bucket": ("bucket", "Create and remove buckets."),
    "status": ("status", "Show the state of the cluster on one screen."),
    "wait": ("wait", "Return when a node is ready, may be stopped, or all is settled."),
    "nodes": ("nodes", "List the nodes."),
    "ring": ("ring", "Show who holds how much of the ring, or what a change would move."),
    "drain": ("drain", "Move a node's chunks to the others; it stays a member."),
    "undrain": ("drain:undrain", "Put a drained node back to use."),
    "leave": ("leave", "Take a living node out of the cluster for good."),
    "remove": ("remove", "Remove a dead node for good."),
    "cluster": ("cluster", "Show or change what holds for all nodes."),
    "scrub": ("scrub", "Reread all chunks, and see damage found and healed."),
    "token": ("token", "Make a token with which a node joins."),
    "meta": ("meta", "Back up, restore and recover the metadata."),
    "admin": ("admin", "Recover access on a node itself."),
}


class _Commands(click.Group):
    """A group that imports a command only when it is used."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module_name, _, attribute = _COMMANDS[name][0].partition(":")
        module = importlib.import_module(f"node.commands.{module_name}")
        command = getattr(module, attribute or "command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        # The default would import every command for its first line of help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast", message="%(version)s")
def _cli() -> None:
    """Holdfast: a file store that keeps every acknowledged byte when machines fail."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    try:
        code = _cli.main(
            list(arguments) if arguments is not None else None,
            prog_name="holdfast",
            standalone_mode=False,
        )
        # What is still buffered may be what does not fit.
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        print("holdfast: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_FAILED
    except NodeError as error:
        for line in str(error).splitlines():
            print(f"holdfast: {printable(line)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough (`holdfast ls | head`).
        _abandon_output()
        return EXIT_DONE
    except OSError as error:
        # A full disk behind `holdfast cat … > file`, mostly.
        named = f"{error.filename}: " if error.filename else ""
        print(f"holdfast: {named}{error.strerror or error}", file=sys.stderr)
        _abandon_output()
        return EXIT_FAILED
    except Exception as error:
        known = client_failure(error)
        if known is None:
            raise
        sentence, exit_code = known
        print(f"holdfast: {printable(sentence)}", file=sys.stderr)
        return exit_code
    return code if isinstance(code, int) else EXIT_DONE


def _abandon_output() -> None:
    """Let what is buffered go nowhere, or Python would try it again at its end, and complain."""
    with open(os.devnull, "wb") as nowhere, contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def client_failure(error: BaseException) -> tuple[str, int] | None:
    """The sentence and exit code for what the gateway's client raises; None for anything else."""
    # Imported here: `serve --help` and the like need no client.
    from gateway import client  # noqa: PLC0415

    match error:
        case client.NotFoundError():
            return error.detail, EXIT_NOT_FOUND
        case client.TryAgainError():
            return error.detail, EXIT_TRY_AGAIN
        case client.UnreachableError():
            return f"The node can't be reached: {error}", EXIT_TRY_AGAIN
        case client.RefusedError() if error.code == "unauthenticated":
            return f"{error.detail} ({_HOW_TO_GIVE_A_KEY})", EXIT_FAILED
        case client.ClientError():
            return str(error), EXIT_FAILED
        case _:
            return None
