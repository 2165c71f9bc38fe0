"""`holdfast bucket`: create and remove buckets."""

from __future__ import annotations

from typing import cast

import click

from gateway.documents import BucketDocument, Visibility
from node.commands import connection, output


@click.group("bucket")
def command() -> None:
    """Create and remove buckets."""


@command.command("create")
@click.argument("name")
@click.option(
    "--visibility",
    type=click.Choice(["private", "public-read", "public-read-write"]),
    default="private",
    show_default=True,
)
@click.option("--hidden", is_flag=True, help="Leave it out of listings.")
@click.option("--quota-bytes", type=click.IntRange(min=0))
@connection.options
def create(
    *,
    name: str,
    visibility: str,
    hidden: bool,
    quota_bytes: int | None,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Create the bucket NAME (3-63 of a-z, 0-9 and hyphens); one that exists is left as it is."""
    connected = connection.connect(url, key_file)

    async def work() -> BucketDocument:
        async with connected.client() as client:
            return await client.create_bucket(
                name,
                visibility=cast("Visibility", visibility),
                hidden=hidden,
                quota_bytes=quota_bytes,
            )

    bucket = connection.run(work)
    if as_json:
        output.print_json(bucket)


@command.command("remove")
@click.argument("name")
@click.option("--cascade", is_flag=True, help="Remove its files too.")
@click.option("--key-file", metavar="FILE", help="A file that holds the API key.")
@click.option("--url", metavar="URL", help="A node, as http://host:7070.")
def remove(name: str, cascade: bool, url: str | None, key_file: str | None) -> None:
    """Remove the bucket NAME, which must be empty."""
    connected = connection.connect(url, key_file)

    async def work() -> None:
        async with connected.client() as client:
            await client.delete_bucket(name, cascade=cascade)

    connection.run(work)
