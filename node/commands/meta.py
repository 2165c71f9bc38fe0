"""`holdfast meta`: backing up the metadata, restoring them, and recovering from a lost majority."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec

from metadata_raft.backup import BackupError, BackupReader, verify_backup
from metadata_raft.state_stream import StateDescription
from node import control
from node.commands import connection, output
from node.errors import NodeError


class BackupDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds, for `--json`."""

    file: str
    cluster_id: str
    incarnation: int
    cluster_version: int
    index: int
    term: int
    size_bytes: int
    """Of the state, uncompressed."""


@click.group("meta")
def command() -> None:
    """Back up, restore and recover the metadata."""


@command.command("backup", short_help="Write the metadata of a node to FILE.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--data", metavar="DIR", help="Ask the node on this data directory; needs no key.")
@connection.options
def backup(
    *, file: str, data: str | None, url: str | None, key_file: str | None, as_json: bool
) -> None:
    """Write the metadata of a node to FILE, which appears only when it is whole.

    It holds what the node has applied at one moment: all buckets, files and their small contents,
    hashes of keys, members. It does not hold chunks, nor any secret of the cluster.
    """
    reader = BackupReader()
    with _written(Path(file), reader) as feed:
        if data is not None:
            for piece in control.stream(data, "/backup"):
                feed(piece)
        else:
            connected = connection.connect(url, key_file)

            async def work() -> None:
                async with connected.client() as client, client.backup() as pieces:
                    async for piece in pieces:
                        feed(piece)

            connection.run(work)
    _tell(file, reader.finish(), as_json=as_json)


@command.command("verify")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def verify(*, file: str, as_json: bool) -> None:
    """Read a backup and check every byte of it."""
    try:
        description = verify_backup(file)
    except BackupError as error:
        raise NodeError(f"{file} {error}.") from error
    _tell(file, description, as_json=as_json)


@command.command("restore", short_help="Begin the cluster anew from FILE.")
@click.option("--data", metavar="DIR", required=True, help="The data directory of a stopped node.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
def restore(*, data: str, file: str | None, yes: bool, as_json: bool) -> None:
    """Begin a new incarnation of the cluster from FILE, else from what this node has.

    The way out where a majority of the voters is lost for good. This node becomes the only voter;
    the others come back with `holdfast meta rejoin`, or new ones join. What was written after the
    backup, or what only the lost nodes knew, is lost. Collection of unreferenced chunks is held.
    """
    from node import recovery  # noqa: PLC0415 - half a node to import
    from node.data_directory import DataDirectory  # noqa: PLC0415

    directory = DataDirectory.open(data)
    with contextlib.closing(directory):
        restored = recovery.restore(
            directory, file, confirm=lambda restored: yes or _is_sure(data, restored)
        )
    if restored is None:
        raise NodeError("Nothing was changed.")
    if as_json:
        output.print_json(restored)
        return
    click.echo(
        f"Restored: node {restored.node_id} begins incarnation {restored.incarnation} of cluster "
        f"{restored.cluster_id}.\nStart it, make a token with `holdfast token` for each node that "
        "still has its disk, and there run:\n"
        "  HOLDFAST_JOIN_TOKEN_FILE=FILE holdfast meta rejoin --data DIR\n"
        "Remove the others with `holdfast remove NODE`. When all chunks are where they belong, let "
        "collection go on with `holdfast cluster resume-collection`."
    )
    if restored.kept:
        click.echo(f"The former metadata are kept in {restored.kept}; remove them when content.")


@command.command("rejoin", short_help="Let a stopped node come back after a restore.")
@click.option("--data", metavar="DIR", required=True, help="The data directory of a stopped node.")
@click.option("--config", "config_path", metavar="FILE", help="Instead of DIR/holdfast.toml.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def rejoin(*, data: str, config_path: str | None, yes: bool) -> None:
    """Let a stopped node come back, with its chunks, to its cluster that was restored elsewhere.

    The token is in the file HOLDFAST_JOIN_TOKEN_FILE, else it is asked for. It must have been made
    after the restore. The node's own metadata are set aside; it gets the cluster's at its next
    start, with `holdfast serve` as always.
    """
    from node import recovery  # noqa: PLC0415 - half a node to import
    from node import settings as node_settings  # noqa: PLC0415
    from node.data_directory import DataDirectory  # noqa: PLC0415
    from node.join import JoinToken  # noqa: PLC0415

    settings = node_settings.load({"data": data}, os.environ, config_path=config_path)
    if settings.join_token is not None:
        text = settings.join_token.value
    elif sys.stdin.isatty():
        text = str(click.prompt("Join token", hide_input=True))
    else:
        raise NodeError("Put the token into a file and name it in HOLDFAST_JOIN_TOKEN_FILE.")
    token = JoinToken.parse(text)
    directory = DataDirectory.open(data)
    with contextlib.closing(directory):
        admitted = asyncio.run(
            recovery.rejoin(
                directory,
                token,
                settings,
                confirm=lambda _: yes or click.confirm("Set this node's own metadata aside?"),
            )
        )
    if admitted is None:
        raise NodeError("Nothing was changed.")
    click.echo(
        f"Node {admitted.node_id} is admitted to incarnation {admitted.incarnation}: start it."
    )


def _is_sure(data: str, restored: object) -> bool:
    from node.recovery import Restored  # noqa: PLC0415

    assert isinstance(restored, Restored)
    others = len(restored.members) - 1
    again = f" The other {others} members are to join again." if others > 1 else ""
    if others == 1:
        again = " The other member is to join again."
    click.echo(
        f"{data} becomes the only voter of incarnation {restored.incarnation} of cluster "
        f"{restored.cluster_id}, with the metadata up to index {restored.index}.{again} "
        "If a majority of the voters still runs, or can be started, don't: their cluster would go "
        "on without this node."
    )
    return click.confirm("Restore?")


@contextlib.contextmanager
def _written(path: Path, reader: BackupReader) -> Iterator[Callable[[bytes], None]]:
    """A file that gets its name when a whole backup was written to it, readable by its owner."""
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:

            def feed(piece: bytes) -> None:
                reader.feed(piece)
                file.write(piece)

            yield feed
            reader.finish()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BackupError as error:
        raise NodeError(f"What the node sent {error}; try again.") from error
    except OSError as error:
        raise NodeError(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _tell(file: str, description: StateDescription, *, as_json: bool) -> None:
    document = BackupDocument(
        file=file,
        cluster_id=description.cluster_id,
        incarnation=description.incarnation,
        cluster_version=description.cluster_version,
        index=description.base.index,
        term=description.base.term,
        size_bytes=description.size_bytes,
    )
    if as_json:
        output.print_json(document)
        return
    click.echo(
        f"{file}: cluster {document.cluster_id}, incarnation {document.incarnation}, metadata up "
        f"to index {document.index}, {output.size(document.size_bytes)}; whole."
    )
