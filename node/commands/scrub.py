"""`holdfast scrub`: let nodes reread all their chunks, until what is bad is healed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import click
import msgspec

from gateway.client import GatewayClient, TryAgainError, UnreachableError
from gateway.documents import ClusterDocument, MemberDocument
from node.cluster_warnings import counted
from node.commands import connection, output
from node.commands.node_names import find_member
from node.errors import EXIT_DONE, EXIT_FAILED, EXIT_TRY_AGAIN

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_SECONDS = 0.5
"""Between two looks; the figures of other nodes are renewed every two seconds."""

FRESH_SECONDS = 4.0
"""After so long every node that answers has been asked again: a scrub that was begun before is
shown. Until then none under way may only mean that the figures are older than its beginning."""

SILENCE_SECONDS = 60.0
"""So long a node, or the one that is asked about all, may say nothing before it is given up."""

STALL_SECONDS = 60.0
"""So long no copy may be healed before those that are lacking are called so: the cause is a node
that is down or full, or that nobody has the chunk. Repair looks again about once in this time."""

HOPELESS_SECONDS = 6.0
"""The same where all of them were looked for on every node: three looks at the figures."""

State = Literal["reading", "healing", "done", "silent"]


class NodeScrub(msgspec.Struct, frozen=True, kw_only=True):
    """One node at one look."""

    node_id: str
    state: State
    done_bytes: int
    total_bytes: int
    damage_found: int
    """Records that the pass has found bad so far."""
    lacking_copies: int
    """Copies that this node should have and has not."""
    unrecoverable_chunks: int


class ScrubReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints at the end."""

    nodes: list[NodeScrub]
    not_told: dict[str, str]
    """Nodes that could not be told to scrub, and why."""

    @property
    def exit_code(self) -> int:
        if any(node.unrecoverable_chunks for node in self.nodes):
            return EXIT_FAILED
        if any(node.state == "healing" for node in self.nodes):
            return EXIT_FAILED
        if self.not_told or any(node.state != "done" for node in self.nodes):
            return EXIT_TRY_AGAIN
        return EXIT_DONE


@click.command("scrub")
@click.option(
    "--node", metavar="NODE", help="Only this one: an id, the beginning of one, or a URL."
)
@click.option("--watch", is_flag=True, help="Begin none; follow those that are under way.")
@click.option("--no-wait", is_flag=True, help="Only begin; `holdfast status` shows how far it is.")
@connection.options
def command(
    *,
    node: str | None,
    watch: bool,
    no_wait: bool,
    url: str | None,
    key_file: str | None,
    as_json: bool,
) -> int:
    """Reread all chunks of all nodes, verify them, and have what is damaged healed from copies.

    Goes on whatever becomes of this command. How fast it reads is a setting of the cluster
    (scrub_bytes_per_second). Ends with 1 if damage is left that could not be healed.
    """
    if watch and no_wait:
        raise click.UsageError("--watch and --no-wait contradict each other.")
    connected = connection.connect(url, key_file)

    async def work() -> ScrubReport:
        async with connected.client() as client:
            wanted, not_told = await _begin(client, node, watch=watch)
            if no_wait:
                return _report(await client.cluster(), wanted, not_told)
            with _Bars(shown=not as_json) as bars:
                nodes = await follow(client.cluster, wanted, bars.show)
            return ScrubReport(nodes=nodes, not_told=not_told)

    report = connection.run(work)
    if as_json:
        output.print_json(report)
    else:
        for line in sentences(report, is_begun_only=no_wait):
            click.echo(line)
    return (EXIT_TRY_AGAIN if report.not_told else EXIT_DONE) if no_wait else report.exit_code


async def _begin(
    client: GatewayClient, name: str | None, *, watch: bool
) -> tuple[dict[str, int], dict[str, str]]:
    """The passes to wait for by node, and who could not be told."""
    cluster = await client.cluster()
    members = cluster.members if name is None else [find_member(cluster.members, name)]
    if watch:
        wanted = _under_way(members)
        deadline = asyncio.get_running_loop().time() + FRESH_SECONDS
        while not wanted and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            ids = {member.node_id for member in members}
            wanted = _under_way([m for m in (await client.cluster()).members if m.node_id in ids])
        return wanted, {}
    told = await client.scrub(members[0].node_id if name is not None else None)
    return (
        {each.node_id: each.passes for each in told.nodes if each.passes is not None},
        {each.node_id: each.detail for each in told.nodes if each.passes is None},
    )


def _under_way(members: Sequence[MemberDocument]) -> dict[str, int]:
    """The pass that each node is in, where it is in one."""
    return {
        member.node_id: _figure(member, "scrub_passes") + 1
        for member in members
        if _figure(member, "scrub_running")
    }


def _report(
    cluster: ClusterDocument, wanted: Mapping[str, int], not_told: dict[str, str]
) -> ScrubReport:
    return ScrubReport(nodes=look_at(cluster, wanted), not_told=not_told)


# --- following -------------------------------------------------------------------------------


def look_at(cluster: ClusterDocument, wanted: Mapping[str, int]) -> list[NodeScrub]:
    """How far each node is on its way to its number of passes. Pure."""
    return [
        _node_scrub(member, wanted[member.node_id])
        for member in cluster.members
        if member.node_id in wanted
    ]


def _node_scrub(member: MemberDocument, passes: int) -> NodeScrub:
    whole = _figure(member, "scrub_passes") >= passes
    is_running = bool(_figure(member, "scrub_running"))
    total = _figure(member, "scrub_total_bytes" if is_running else "disk_allocated_bytes")
    lacking = _figure(member, "repair_remaining_copies")
    state: State = "reading"
    if whole:
        state = "healing" if lacking else "done"
    elif member.last_seen_seconds is None or member.last_seen_seconds > SILENCE_SECONDS:
        state = "silent"
    return NodeScrub(
        node_id=member.node_id,
        state=state,
        done_bytes=total if whole else _figure(member, "scrub_done_bytes"),
        total_bytes=total,
        damage_found=_figure(member, "scrub_damage_found") if whole or is_running else 0,
        lacking_copies=lacking,
        unrecoverable_chunks=_figure(member, "unrecoverable_chunks") if whole else 0,
    )


def _figure(member: MemberDocument, name: str) -> int:
    return int(member.load.get(name, 0))


async def follow(
    look: Callable[[], Awaitable[ClusterDocument]],
    wanted: Mapping[str, int],
    show: Callable[[list[NodeScrub]], None],
) -> list[NodeScrub]:
    """Look until all is read and healed, or nothing moves any more; returns the last look.

    Raises what the client does where nobody answers for long.
    """
    loop = asyncio.get_running_loop()
    heard = moved = loop.time()
    last: list[NodeScrub] = []
    while True:
        try:
            now = look_at(await look(), wanted)
        except (UnreachableError, TryAgainError):
            if loop.time() - heard > SILENCE_SECONDS:
                raise
        else:
            heard = loop.time()
            show(now)
            is_read = all(node.state != "reading" for node in now)
            if not is_read or _lacking(now) < _lacking(last) or not last:
                moved = loop.time()
            last = now
            if all(node.state in ("done", "silent") for node in now):
                return now
            patience = HOPELESS_SECONDS if _is_hopeless(now) else STALL_SECONDS
            if is_read and loop.time() - moved > patience:
                return now
        await asyncio.sleep(POLL_SECONDS)


def _is_hopeless(nodes: list[NodeScrub]) -> bool:
    """Whether nothing is lacking but what was found on no node."""
    return all(node.lacking_copies <= node.unrecoverable_chunks for node in nodes)


def _lacking(nodes: list[NodeScrub]) -> int:
    return sum(node.lacking_copies for node in nodes)


# --- showing ---------------------------------------------------------------------------------


def sentences(report: ScrubReport, *, is_begun_only: bool) -> list[str]:
    """What is printed at the end, one sentence a line."""
    lines = [
        f"Node {node} could not be told to scrub: {why}." for node, why in report.not_told.items()
    ]
    nodes = report.nodes
    if is_begun_only:
        begun = counted(len(nodes), "node begins", "nodes begin")
        return [*lines, f"{begun}; `holdfast scrub --watch` follows."]
    lines += [
        f"Node {node.node_id} has not answered for {SILENCE_SECONDS:.0f} s; it goes on when it can."
        for node in nodes
        if node.state == "silent"
    ]
    if not nodes:
        return [*lines, "No scrub is under way."]
    read = [node for node in nodes if node.state in ("done", "healing")]
    found = sum(node.damage_found for node in read)
    lines.append(
        f"Read {output.size(sum(node.total_bytes for node in read))} on "
        f"{counted(len(read), 'node', 'nodes')};"
        f" {counted(found, 'damaged record', 'damaged records')} found."
    )
    lost = max((node.unrecoverable_chunks for node in nodes), default=0)
    lacking = sum(node.lacking_copies for node in nodes if node.state == "healing")
    if lost:
        lines.append(
            f"{counted(lost, 'chunk has', 'chunks have')} no good copy on any node that answers."
        )
    if lacking:
        lines.append(
            f"{counted(lacking, 'copy is', 'copies are')} lacking still; "
            "`holdfast status` says more."
        )
    elif found and not lost:
        lines.append("All are healed.")
    return lines


class _Bars:
    """A bar for each node on a terminal; elsewhere nothing until the end."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._shown:
            from rich import progress  # noqa: PLC0415 - costs a tenth of a second
            from rich.console import Console  # noqa: PLC0415

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
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

    def show(self, nodes: list[NodeScrub]) -> None:
        if self._progress is None:
            return
        for node in nodes:
            if node.node_id not in self._tasks:
                self._tasks[node.node_id] = self._progress.add_task("", total=None)
            found = f", {node.damage_found} bad" if node.damage_found else ""
            self._progress.update(
                self._tasks[node.node_id],
                description=f"{node.node_id[:8]} {node.state}{found}",
                total=node.total_bytes,
                completed=node.done_bytes,
            )
