"""What commands print: JSON for programs, tables for people, progress on a terminal only."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
import msgspec

from node.commands.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UUID = re.compile(r"\b([0-9a-f]{8})(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def print_json(value: Any) -> None:
    """One JSON document, indented on a terminal."""
    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty():
        encoded = msgspec.json.format(encoded)
    click.echo(encoded.decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; by rich on a terminal, plain and tab-separated without heads in a pipe.

    Control characters are shown as escapes, so that a row is a line; JSON has the exact names.
    """
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(map(printable, row)))
        return
    from rich.console import Console  # noqa: PLC0415 - costs a tenth of a second
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    Console(highlight=False).print(table)


def size(count: int) -> str:
    """`3.2 GiB`."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def moment(milliseconds: int) -> str:
    """`2026-11-20 09:00:00Z`."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


class Transfers:
    """A progress bar per file and one for all, on standard error if that is a terminal."""

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        self._verb = verb
        self._progress: Progress | None = None
        self._whole: TaskID | None = None
        self._shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._shown:
            from rich import progress  # noqa: PLC0415
            from rich.console import Console  # noqa: PLC0415

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=False,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, files: int, total_bytes: int) -> None:
        """Show a bar over all files, where there are several."""
        if self._progress is not None and files > 1:
            self._whole = self._progress.add_task(f"{files} files", total=total_bytes)

    @contextlib.contextmanager
    def file(self, name: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
        """Yields what to call with the number of bytes that have just moved."""
        shown, whole = self._progress, self._whole
        if shown is None:
            yield lambda _count: None
            return
        task = shown.add_task(f"{self._verb} {printable(name)}", total=total_bytes)

        def advance(count: int) -> None:
            shown.advance(task, count)
            if whole is not None:
                shown.advance(whole, count)

        try:
            yield advance
        finally:
            if whole is not None:
                shown.remove_task(task)


def _escaped(text: str) -> str:
    """Fit for a table on a screen: ids by their first group, no markup in square brackets."""
    return _UUID.sub(r"\1", printable(text)).replace("[", "\\[")
