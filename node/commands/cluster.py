"""`holdfast cluster`: what holds for all nodes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click
import msgspec

from gateway.documents import SettingsChange, SettingsDocument
from node.commands import connection, output
from node.commands.quantities import duration, parse_rate, parse_seconds

DEFAULT_WORD = "default"
VALUE_MAX = 2**53
"""The largest number that the API takes: JSON's readers agree up to here."""


@click.group("cluster")
def command() -> None:
    """Settings of the whole cluster."""


@command.command("settings", short_help="Show or change the settings of all nodes.")
@click.option(
    "--set",
    "changes",
    metavar="NAME=VALUE",
    multiple=True,
    help="Change one, as repair_bytes_per_second=50MB; may be repeated.",
)
@connection.options
def settings(
    *, changes: Sequence[str], url: str | None, key_file: str | None, as_json: bool
) -> None:
    """Show the settings that hold for all nodes, or change some: they take effect at once.

    Rates are given with a unit (50MB, 64MiB; 0: without limit), times as 90s, 12h or 14d, and
    `default` is the value that the program comes with.
    """
    change = parse_changes(changes)
    connected = connection.connect(url, key_file)

    async def work() -> SettingsDocument:
        async with connected.client() as client:
            if changes:
                return await client.change_settings(change)
            return msgspec.convert((await client.cluster()).settings, SettingsDocument)

    document = connection.run(work)
    if as_json:
        output.print_json(document)
        return
    output.print_table(
        ("setting", "value"),
        [(name, shown(name, value)) for name, value in msgspec.structs.asdict(document).items()],
    )


@command.command("resume-collection", short_help="Let space be reclaimed after a restore.")
@connection.options
def resume_collection(*, url: str | None, key_file: str | None, as_json: bool) -> None:
    """Let space be reclaimed again after the metadata was restored from a backup.

    Do this once what the backup did not know has been looked through: chunks that only newer files
    referred to are kept until then, and go after it.
    """
    connected = connection.connect(url, key_file)

    async def work() -> None:
        async with connected.client() as client:
            await client.resume_collection()

    connection.run(work)
    if as_json:
        output.print_json({"collection_held": False})
    else:
        click.echo("Space is reclaimed again.")


def parse_changes(changes: Sequence[str]) -> SettingsChange:
    """`NAME=VALUE` each; raises click.UsageError naming what there is."""
    known: dict[str, Callable[[str], int]] = {
        name: parse_rate if _is_rate(name) else parse_seconds
        for name in SettingsDocument.__struct_fields__
    }
    values: dict[str, int | None] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in known:
            raise click.UsageError(
                f"{change!r} is not NAME=VALUE with a setting of these: {', '.join(known)}"
            )
        values[name] = None if text == DEFAULT_WORD else known[name](text)
        if (values[name] or 0) > VALUE_MAX:
            raise click.BadParameter(f"{text!r} is more than any setting can be")
    return SettingsChange(**values)


def _is_rate(name: str) -> bool:
    return "_bytes_per_second" in name


def shown(name: str, value: int) -> str:
    """A value with its unit, and 0 by what it means."""
    if name.endswith("_beside_clients") and not value:
        return "as much as a quarter of the rate without clients"
    if _is_rate(name):
        return f"{output.size(value)}/s" if value else "without limit"
    return duration(value) if value else "only when asked for"
