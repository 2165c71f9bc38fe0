"""`holdfast rm`: remove files; their space comes back in the background."""

from __future__ import annotations

import click

from gateway.client import GatewayClient, NotFoundError
from node.commands import bounded, connection, names, output
from node.commands.get import NothingBelowError


@click.command("rm")
@click.argument("targets", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Remove all files below TARGETS.")
@click.option("-f", "--force", is_flag=True, help="A file that is not there is no failure.")
@connection.options
def command(
    *,
    targets: tuple[str, ...],
    recursive: bool,
    force: bool,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Remove TARGETS (BUCKET/PATH)."""
    wanted = [names.parse(target) if recursive else names.parse_file(target) for target in targets]
    connected = connection.connect(url, key_file)

    async def work() -> list[str]:
        async with connected.client() as client:
            removed: list[str] = []
            for name in wanted:
                if recursive:
                    removed += await _remove_folder(client, name, force=force)
                elif await _remove(client, name, force=force):
                    removed.append(str(name))
            return removed

    removed = connection.run(work)
    if as_json:
        output.print_json({"removed": removed})


async def _remove(client: GatewayClient, name: names.RemoteName, *, force: bool) -> bool:
    try:
        await client.delete(name.bucket, name.path)
    except NotFoundError:
        if not force:
            raise
        return False
    return True


async def _remove_folder(
    client: GatewayClient, name: names.RemoteName, *, force: bool
) -> list[str]:
    prefix = "" if name.path == "" else name.below("").path
    removed: list[str] = []

    async def one(each: names.RemoteName) -> None:
        if await _remove(client, each, force=True):
            removed.append(str(each))

    if not name.is_folder:
        await one(name)
    async for page in client.list_all(name.bucket, prefix=prefix):
        await bounded.each(
            one, [(names.RemoteName(name.bucket, file.path),) for file in page.files]
        )
    if not removed and not force:
        raise NothingBelowError(f"There are no files below {name}.")
    return removed
