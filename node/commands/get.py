"""`holdfast get`: fetch files or folders; a file appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path

import click
import msgspec

from gateway.client import GatewayClient
from node.commands import bounded, connection, names, output
from node.errors import NodeError


class Fetched(msgspec.Struct, frozen=True):
    bucket: str
    path: str
    local: str
    size_bytes: int
    etag: str


@click.command("get")
@click.argument("source")
@click.argument("target", required=False)
@click.option("-r", "--recursive", is_flag=True, help="Fetch all files below SOURCE.")
@connection.options
def command(
    *,
    source: str,
    target: str | None,
    recursive: bool,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Fetch SOURCE (BUCKET/PATH) to TARGET.

    Without a target the file keeps its name, in this folder. A target - is standard output. The
    contents are verified and get their name last, so a broken download leaves nothing behind.
    """
    name = names.parse(source) if recursive else names.parse_file(source)
    connected = connection.connect(url, key_file)

    async def work() -> list[Fetched]:
        async with connected.client() as client:
            if recursive:
                return await _fetch_folder(client, name, target, quiet=as_json)
            if target == "-":
                await stream(client, name)
                return []
            with output.Transfers("get", quiet=as_json) as transfers:
                local = names.local_target(name, target)
                return [await fetch(client, name, local, transfers)]

    fetched = connection.run(work)
    if as_json and target != "-":
        output.print_json(fetched)


async def _fetch_folder(
    client: GatewayClient, name: names.RemoteName, target: str | None, *, quiet: bool
) -> list[Fetched]:
    prefix = "" if name.path == "" else name.below("").path
    home = Path(
        target if target is not None else (prefix.rstrip("/") or name.bucket).split("/")[-1]
    )
    plan: list[tuple[names.RemoteName, Path]] = []
    total_bytes = 0
    async for page in client.list_all(name.bucket, prefix=prefix):
        for file in page.files:
            try:
                relative = names.safe_relative(file.path.removeprefix(prefix))
            except ValueError as error:
                raise NodeError(f"{error}.") from error
            plan.append((names.RemoteName(name.bucket, file.path), home / relative))
            total_bytes += file.size_bytes
    if not plan:
        raise NothingBelowError(f"There are no files below {name}.")
    with output.Transfers("get", quiet=quiet) as transfers:
        transfers.expect(len(plan), total_bytes)

        async def one(remote: names.RemoteName, local: Path) -> Fetched:
            return await fetch(client, remote, local, transfers)

        return await bounded.each(one, plan)


async def fetch(
    client: GatewayClient, name: names.RemoteName, local: Path, transfers: output.Transfers
) -> Fetched:
    """Download one file under a temporary name, verified and durable before it gets its own."""
    async with client.get(name.bucket, name.path) as download:
        temporary = local.with_name(f".{local.name[:40]}.{secrets.token_hex(4)}.part")
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            with (
                temporary.open("xb") as file,
                transfers.file(str(name), download.size_bytes) as advance,
            ):
                async for piece in download:
                    file.write(piece)
                    advance(len(piece))
                file.flush()
                os.fdatasync(file.fileno())
            temporary.replace(local)
        except OSError as error:
            raise NodeError(f"{local} can't be written: {error.strerror or error}.") from error
        finally:
            with contextlib.suppress(OSError):  # where there is no folder, there is no file
                temporary.unlink()
        return Fetched(
            bucket=name.bucket,
            path=name.path,
            local=str(local),
            size_bytes=download.size_bytes,
            etag=download.etag,
        )


async def stream(client: GatewayClient, name: names.RemoteName) -> None:
    """Write one file to standard output."""
    async with client.get(name.bucket, name.path) as download:
        async for piece in download:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


class NothingBelowError(NodeError):
    """A folder that holds nothing; folders exist by their files alone."""

    exit_code = 3
