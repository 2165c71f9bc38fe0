"""`holdfast status`: the cluster on one screen, once or again and again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import click
import msgspec

from gateway.client import TryAgainError, UnreachableError
from gateway.documents import ClusterDocument
from node.commands import client_failure, connection, output
from node.commands.status_screen import BAD, FAINT, Line, screen
from node.commands.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WATCH_SECONDS = 1.0
"""Between two looks; the figures of other nodes are renewed every two seconds."""

ANSWER_SECONDS = 5.0
"""What a node may take for an answer before the screen says that it does not."""


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@connection.options
def command(url: str | None, key_file: str | None, as_json: bool, watch: bool) -> None:
    """Show the state of the cluster: quorum, nodes, chunks on the move, and what is wrong.

    Any node answers, also one that has no quorum. With --watch --json each look is a line.
    """
    connected = connection.connect(url, key_file)

    async def look() -> ClusterDocument:
        async with connected.client() as client:
            return await client.cluster()

    if not watch:
        cluster = connection.run(look)
        if as_json:
            output.print_json(cluster)
        else:
            _show_once(cluster)
        return

    async def work() -> None:
        async with connected.client() as client:
            with _shower(as_json=as_json) as shower:
                await watching(client.cluster, shower.show)

    connection.run(work)


async def watching(
    look: Callable[[], Awaitable[ClusterDocument]],
    show: Callable[[ClusterDocument | str], None],
) -> None:
    """Look and show until Ctrl-C; a node that can't answer is shown as a sentence and asked again.

    What is wrong with the request itself (a bad key) is raised, because asking again can't help.
    """
    stop = asyncio.Event()
    # Ctrl-C is how this ends well; without a handler it would be an interrupted command.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            asked = asyncio.ensure_future(_asked(look))
            await asyncio.wait({asked, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                asked.cancel()
                break
            show(asked.result())
            await asyncio.wait({stopped}, timeout=WATCH_SECONDS)
    finally:
        stopped.cancel()


async def _asked(look: Callable[[], Awaitable[ClusterDocument]]) -> ClusterDocument | str:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await look()
    except TimeoutError:
        return f"The node has not answered for {ANSWER_SECONDS:.0f} s."
    except (UnreachableError, TryAgainError) as error:
        failure = client_failure(error)
        return failure[0] if failure is not None else str(error)


# --- showing ---------------------------------------------------------------------------------


def _show_once(cluster: ClusterDocument) -> None:
    if sys.stdout.isatty():
        console = _console()
        console.print(_text(screen(cluster, console.width)))
    else:
        click.echo("\n".join(line.text for line in screen(cluster, None)))


def _shower(*, as_json: bool) -> _Lines | _Pages | _Screen:
    if as_json:
        return _Lines()
    console = _console()
    # A dumb terminal can't go back to its first line, and a pipe has none.
    return _Screen(console) if console.is_terminal and not console.is_dumb_terminal else _Pages()


class _Lines:
    """JSON: one document a line; what is no document goes to standard error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, found: ClusterDocument | str) -> None:
        if isinstance(found, str):
            click.echo(f"holdfast: {printable(found)}", err=True)
        else:
            click.echo(msgspec.json.encode(found).decode())


class _Pages:
    """Text: one look below the other, each with the time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, found: ClusterDocument | str) -> None:
        click.echo(f"{_now()}\n" + "\n".join(line.text for line in _lines(found, None)) + "\n")


class _Screen:
    """A terminal: one screen, drawn anew in place; the last one stays when it ends."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live  # noqa: PLC0415 - costs a tenth of a second

        self._console = console
        self._last: ClusterDocument | str | None = None
        self._live = Live(
            console=console, screen=True, auto_refresh=False, vertical_overflow="crop"
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._last is not None:
            self._console.print(_text(_lines(self._last, self._console.width)))

    def show(self, found: ClusterDocument | str) -> None:
        self._last = found
        head = Line(f"{_now()}  every {WATCH_SECONDS:.0f} s, Ctrl-C ends", FAINT)
        lines = [head, *_lines(found, self._console.width)]
        self._live.update(_text(fitted(lines, self._console.height)), refresh=True)


def fitted(lines: Sequence[Line], height: int) -> Sequence[Line]:
    """What a screen has room for; where that is not all, its last line says so."""
    if len(lines) <= height:
        return lines
    shown = max(0, height - 1)
    return [
        *lines[:shown],
        Line(f"… {len(lines) - shown} more lines than this window shows", FAINT),
    ]


def _lines(found: ClusterDocument | str, width: int | None) -> list[Line]:
    return [Line(printable(found), BAD)] if isinstance(found, str) else screen(found, width)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - costs a tenth of a second

    return Console(highlight=False)


def _text(lines: Sequence[Line]) -> Text:
    from rich.text import Text  # noqa: PLC0415

    text = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(lines):
        text.append(("\n" if number else "") + line.text, line.style or None)
    return text


def _now() -> str:
    return datetime.now(tz=UTC).strftime("%H:%M:%SZ")
