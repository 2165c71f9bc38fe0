"""How far a node is on its way out of the ring, or out of the cluster: told from the cluster's
replicated state, so that whoever asks, wherever and whenever, is told the same.

A node that drains or leaves is taken out of the ring first; then every node that is left in it
makes the copies it lacks, and says so (it is settled at the current epoch); a leaving node then
leaves the metadata group, and its record goes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import click
import msgspec

from gateway.client import TryAgainError, UnreachableError
from gateway.documents import ClusterDocument
from node.commands import output
from node.errors import EXIT_FAILED, EXIT_TRY_AGAIN, NodeError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_SECONDS = 0.5
"""Between two looks; each is one small request."""

SILENCE_SECONDS = 60.0
"""So long nobody may answer before the command gives up: longer than an election or a restart."""

BYTES_LEFT = "repair_bytes_left"
"""The figure in a node's load that says what it still has to fetch."""

Step = Literal["ring", "copies", "group", "done", "recalled"]


class Departure(msgspec.Struct, frozen=True):
    """One look at a departure."""

    step: Step
    """What it waits for: to be out of the ring, for the copies, to be out of the group. Or: done;
    recalled, which means that somebody has put the node back to use."""
    sentence: str
    bytes_left: int | None = None
    """What the others still have to fetch, as far as they said."""


class RecalledError(NodeError):
    exit_code = EXIT_FAILED


class NotYetError(NodeError):
    """What was begun goes on without the command."""

    exit_code = EXIT_TRY_AGAIN


def departure(cluster: ClusterDocument, node_id: str) -> Departure:
    """How far a node is that was told to drain or to leave. Pure."""
    member = next((each for each in cluster.members if each.node_id == node_id), None)
    if member is None:
        return Departure("done", "The node has left the cluster.")
    if member.intent == "stay":
        return Departure("recalled", "The node has been put back to use.")
    if member.in_ring:
        return Departure("ring", "Waiting for a ring without the node.")
    ring = [each for each in cluster.members if each.in_ring]
    settled = sum(each.settled_epoch >= cluster.epoch for each in ring)
    if settled < len(ring):
        figures = [each.load[BYTES_LEFT] for each in ring if BYTES_LEFT in each.load]
        silent = [
            each.client_url
            for each in ring
            if each.settled_epoch < cluster.epoch and each.reachable is False
        ]
        return Departure(
            "copies",
            f"Copies: {settled} of {len(ring)} nodes hold all that belongs to them."
            + (f" No answer from {', '.join(silent)}." if silent else ""),
            int(sum(figures)) if figures else None,
        )
    if member.intent == "drain":
        return Departure("done", "The node is drained: no copy is needed from it any more.")
    silent = [
        each.client_url
        for each in cluster.members
        if each.stage == "voter" and each.node_id != node_id and each.reachable is False
    ]
    return Departure(
        "group",
        "Leaving the metadata group."
        + (f" No answer from the voters {', '.join(silent)}." if silent else ""),
    )


async def watch(
    look: Callable[[], Awaitable[Departure]], *, timeout_seconds: float | None, shown: bool = True
) -> Departure:
    """Follow a departure to its end, and show it on standard error.

    Raises RecalledError, and NotYetError after the time limit or where nobody answers any more:
    it goes on all the same, and may be watched again.
    """
    loop = asyncio.get_running_loop()
    started = heard = loop.time()
    with Display(shown=shown) as display:
        while True:
            try:
                now = await look()
            except (UnreachableError, TryAgainError) as error:
                if loop.time() - heard > SILENCE_SECONDS:
                    raise NotYetError(
                        f"No node has answered for {SILENCE_SECONDS:.0f} s ({error}). What was "
                        "begun goes on; run the command again to watch it."
                    ) from error
            else:
                heard = loop.time()
                display.show(now)
                if now.step == "recalled":
                    raise RecalledError(now.sentence)
                if now.step == "done":
                    return now
            if timeout_seconds is not None and loop.time() - started > timeout_seconds:
                raise NotYetError(
                    f"Not done within {timeout_seconds:g} s. It goes on; run the command again to "
                    "watch it."
                )
            await asyncio.sleep(POLL_SECONDS)


class Display:
    """The steps as lines; on a terminal the copies as a bar with bytes left, rate and time."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told: tuple[Step, str] | None = None
        self._total = 0

    def __enter__(self) -> Self:
        if self._shown and sys.stderr.isatty():
            from rich import progress  # noqa: PLC0415 - costs a tenth of a second
            from rich.console import Console  # noqa: PLC0415

            self._progress = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
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

    def show(self, now: Departure) -> None:
        if not self._shown:
            return
        if self._progress is None:
            if (now.step, now.sentence) != self._told:
                left = f" {output.size(now.bytes_left)} to go." if now.bytes_left else ""
                click.echo(now.sentence + left, err=True)
        else:
            if now.step != "copies" and (now.step, now.sentence) != self._told:
                self._progress.console.print(now.sentence, markup=False, highlight=False)
            self._show_copies(self._progress, now)
        self._told = now.step, now.sentence

    def _show_copies(self, progress: Progress, now: Departure) -> None:
        if now.step == "copies":
            left = now.bytes_left or 0
            self._total = max(self._total, left)
            if self._task is None:
                self._task = progress.add_task(now.sentence, total=self._total or None)
            progress.update(
                self._task,
                description=now.sentence,
                total=self._total or None,
                completed=self._total - left,
                refresh=True,
            )
        elif self._task is not None:
            progress.remove_task(self._task)
            self._task = None
