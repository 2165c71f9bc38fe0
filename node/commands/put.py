"""`holdfast put`: store files, folders or a stream."""

from __future__ import annotations

import contextlib
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import click

from gateway.client import GatewayClient, PreconditionError, SourceError
from gateway.documents import UploadReceipt
from node.commands import bounded, connection, names, output
from node.commands.text import printable
from node.errors import NodeError


@click.command("put")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
@click.option("-r", "--recursive", is_flag=True, help="Store folders with all they hold.")
@click.option("--content-type", default="application/octet-stream", show_default=True)
@click.option("--new-only", is_flag=True, help="Fail where the file exists already.")
@connection.options
def command(
    *,
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    content_type: str,
    new_only: bool,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Store SOURCES as TARGET (BUCKET/PATH).

    A source - is standard input. A target that ends with a slash, or is a bucket alone, is a
    folder. With -r the files of a folder go below TARGET; links and what is no file
    are left out, and named.
    """
    plan = _plan(sources, names.parse(target), recursive=recursive)
    connected = connection.connect(url, key_file)

    async def work() -> list[UploadReceipt]:
        async with connected.client() as client:
            return await _upload(client, plan, content_type, new_only=new_only, quiet=as_json)

    receipts = connection.run(work)
    if as_json:
        output.print_json(receipts)


def _plan(
    sources: tuple[str, ...], target: names.RemoteName, *, recursive: bool
) -> list[tuple[str, names.RemoteName]]:
    """(local path or "-", remote name) for every file. Raises NodeError, click.UsageError."""
    plan: list[tuple[str, names.RemoteName]] = []
    for source in sources:
        if source == "-":
            if target.is_folder or len(sources) > 1:
                raise click.UsageError("Standard input needs a target that names one file.")
            plan.append(("-", target))
        elif os.path.isdir(source):
            if not recursive:
                raise click.UsageError(f"{source} is a folder; give -r to store what it holds.")
            folder = target.below(Path(source).resolve().name) if len(sources) > 1 else target
            found, left_out = names.files_below(Path(source))
            plan.extend((str(path), folder.below(relative)) for path, relative in found)
            for path in left_out:
                click.echo(f"holdfast: left out, no file: {printable(str(path))}", err=True)
        elif os.path.exists(source):
            several = len(sources) > 1
            plan.append((source, names.upload_target(source, target, several=several)))
        else:
            raise NodeError(f"There is no file {source}.")
    return plan


async def _upload(
    client: GatewayClient,
    plan: list[tuple[str, names.RemoteName]],
    content_type: str,
    *,
    new_only: bool,
    quiet: bool,
) -> list[UploadReceipt]:
    sizes = _sizes(plan)
    with output.Transfers("put", quiet=quiet) as transfers:
        transfers.expect(len(plan), sum(sizes.values()))

        async def one(local: str, remote: names.RemoteName) -> UploadReceipt:
            with (
                _opened(local) as source,
                transfers.file(str(remote), sizes.get(local)) as advance,
            ):
                try:
                    return await client.put(
                        remote.bucket,
                        remote.path,
                        source,
                        content_type=content_type,
                        if_none_match="*" if new_only else None,
                        progress=advance,
                    )
                except PreconditionError as error:
                    raise NodeError(f"{remote} exists already.") from error
                except SourceError as error:
                    raise NodeError(f"{local}: {error}.") from error

        return await bounded.each(one, plan)


def _sizes(plan: list[tuple[str, names.RemoteName]]) -> dict[str, int]:
    return {local: os.path.getsize(local) for local, _ in plan if local != "-"}


def _opened(local: str) -> AbstractContextManager[BinaryIO]:
    """The file, or standard input, which is left open."""
    if local == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(local, "rb")
    except OSError as error:
        raise NodeError(f"{local} can't be read: {error.strerror}.") from error
