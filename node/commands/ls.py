"""`holdfast ls`: list buckets or files."""

from __future__ import annotations

import click

from gateway.client import GatewayClient, NotFoundError
from gateway.documents import BucketDocument, FileDocument
from node.commands import connection, names, output
from node.commands.get import NothingBelowError


@click.command("ls")
@click.argument("name", required=False)
@click.option("-r", "--recursive", is_flag=True, help="All files below, not only one level.")
@connection.options
def command(
    *, name: str | None, recursive: bool, url: str | None, key_file: str | None, as_json: bool
) -> None:
    """List the buckets, or what is in NAME (BUCKET or BUCKET/PATH)."""
    connected = connection.connect(url, key_file)
    if name is None:
        buckets = connection.run(lambda: _buckets(connected))
        if as_json:
            output.print_json(buckets)
        else:
            output.print_table(
                ("bucket", "files", "size", "visibility"),
                [
                    (each.name, str(each.file_count), output.size(each.size_bytes), each.visibility)
                    for each in buckets
                ],
            )
        return
    wanted = names.parse(name)

    async def work() -> tuple[list[FileDocument], list[str]]:
        async with connected.client() as client:
            return await _files(client, wanted, recursive=recursive)

    files, folders = connection.run(work)
    if as_json:
        output.print_json({"files": files, "folders": folders})
        return
    rows = [("-", "", folder) for folder in folders]
    rows += [
        (output.size(file.size_bytes), output.moment(file.modified_ms), file.path) for file in files
    ]
    output.print_table(("size", "modified", "path"), sorted(rows, key=lambda row: row[2]))


async def _buckets(connected: connection.Connection) -> list[BucketDocument]:
    found: list[BucketDocument] = []
    async with connected.client() as client:
        cursor: str | None = None
        while True:
            page = await client.buckets(cursor=cursor)
            found.extend(page.buckets)
            cursor = page.next_cursor
            if cursor is None:
                return found


async def _files(
    client: GatewayClient, name: names.RemoteName, *, recursive: bool
) -> tuple[list[FileDocument], list[str]]:
    """The files and folders that `name` means: a file of that name, or what is below it."""
    files: list[FileDocument] = []
    folders: list[str] = []
    if not name.is_folder:
        try:
            files.append(await client.metadata(name.bucket, name.path))
        except NotFoundError as error:
            if error.code == "no_such_bucket":
                raise
    prefix = "" if name.path == "" else name.below("").path
    delimiter = "" if recursive else "/"
    async for page in client.list_all(name.bucket, prefix=prefix, delimiter=delimiter):
        files.extend(page.files)
        folders.extend(page.prefixes)
    if not files and not folders and name.path:
        raise NothingBelowError(f"There is no file {name} and none below it.")
    return files, folders
