"""The Raft group of the metadata alone: three processes, real journal and state, every sync.

The parts, each with a group of its own:

    throughput  file commits a second, 256 outstanding from the leader and from a follower, and one
                outstanding on the leader
    failover    how long no write succeeds after kill -9 of the leader, ten times
    million     what a hundred times as many files change: memory, latency, restart, and the
                download of the state to an empty node

A commit is a new file of one chunk in one command, submitted by an asyncio task of the same
process and counted when its result is applied there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from loadtests.measurements import Bar, Measurement, longest_gap, median_of
from loadtests.metadata_process import (
    HOST,
    Admit,
    Answer,
    Barrier,
    Checkpoint,
    Commit,
    Request,
    Start,
    StartWriting,
    Status,
    StopWriting,
)
from metadata_raft.records import MemberAddress
from node.ports import free_ports

PARTS = ("throughput", "failover", "million")
MIB = 1 << 20
OUTSTANDING = 256
FEW_FILES, MANY_FILES = 10_000, 1_000_000
FAILOVERS = 10

OUTSTANDING_BAR = Bar(at_least=5000)
SERIAL_BAR = Bar(at_least=300)
FAILOVER_BAR = Bar(at_most=1.0)
MEMORY_BAR = Bar(at_most=150)
LATENCY_BAR = Bar(at_most=1.5)
RESTART_BAR = Bar(at_most=10)
DOWNLOAD_BAR = Bar(at_most=60)

_FILL_OUTSTANDING = 1024
_SERIAL_COMMITS = 2000
_STEADY_SECONDS = 0.5
"""How long writes go on before the leader is killed."""
_FAILOVER_SECONDS = 5.0
"""How long they are watched after it; a gap without an end counts as this long."""
_SETTLE_SECONDS = 60.0
_POLL_SECONDS = 0.02


class GroupError(Exception):
    """A member answered with an error, ended, or did not get where it should in time."""


class MemberHandle:
    """One member's folder and port, and its process while there is one."""

    def __init__(self, number: int, folder: Path, sponsor: MemberAddress | None) -> None:
        self.number = number
        self.port = free_ports(1)[0]
        self.node_id = str(uuid.UUID(int=number))
        self.address = MemberAddress(node_id=self.node_id, raft_address=f"{HOST}:{self.port}")
        self._directory = folder / f"member-{number}"
        self._log = folder / f"member-{number}.log"
        self._sponsor = sponsor
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process and tell it to start; the answer is not awaited."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loadtests.metadata_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._send(
            Start(
                node_id=self.node_id,
                directory=str(self._directory),
                port=self.port,
                sponsor=self._sponsor,
            )
        )

    def ask(self, request: Request) -> Answer:
        """Send a request and wait for the answer. Raises GroupError."""
        self._send(request)
        return self.receive()

    def receive(self) -> Answer:
        """Wait for the answer to the last request. Raises GroupError."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GroupError(f"member {self.number} ended:\n{self._log.read_text()[-3000:]}")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error:
            raise GroupError(f"member {self.number}: {answer.error}")
        return answer

    def kill(self) -> None:
        """End the process by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def resident_mib(self) -> float:
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def _send(self, request: Request) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()


class Group:
    """Three members that vote."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.members: list[MemberHandle] = []

    def start(self) -> None:
        """Found the group and let two more members join it."""
        folder = self._folder
        first = MemberHandle(1, folder, sponsor=None)
        self.members.append(first)
        first.launch()
        first.receive()
        for _ in range(2):
            self.add(first)
        self._wait(
            lambda: all(member.ask(Status()).voters == 3 for member in self.members),
            "three voters",
        )

    def add(self, sponsor: MemberHandle) -> MemberHandle:
        """Launch an empty member and admit it."""
        member = MemberHandle(len(self.members) + 1, self._folder, sponsor.address)
        self.members.append(member)
        member.launch()
        sponsor.ask(Admit(node_id=member.node_id, port=member.port))
        member.receive()
        return member

    def leader(self) -> MemberHandle:
        """Return the leader; waits for an election if there is none."""
        found: list[MemberHandle] = []

        def known() -> bool:
            found[:] = [each for each in self.members if each.ask(Status()).role == "leader"]
            return len(found) == 1

        self._wait(known, "one leader")
        return found[0]

    def followers(self) -> list[MemberHandle]:
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def wait_applied(self) -> None:
        """Wait until all members have applied the same."""
        self._wait(
            lambda: len({member.ask(Status()).applied_index for member in self.members}) == 1,
            "all members at one index",
        )

    def close(self) -> None:
        for member in self.members:
            member.kill()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise GroupError(f"{what}: not within {_SETTLE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)


def run(folder: Path, part: str, *, repetitions: int, seconds: float) -> Iterator[Measurement]:
    """Yield the measurements of a part as they are made. Raises GroupError."""
    with _group(folder / part) as group:
        if part == "throughput":
            yield from _throughput(group, repetitions, seconds)
        elif part == "failover":
            yield _failover(group)
        else:
            yield from _million(group)


# --- the parts -----------------------------------------------------------------------------------


def _throughput(group: Group, repetitions: int, seconds: float) -> Iterator[Measurement]:
    measured: dict[str, list[Answer]] = {"leader": [], "follower": [], "serial": []}
    for repetition in range(repetitions):
        _say(f"throughput, repetition {repetition + 1} of {repetitions} ...")
        leader = group.leader()
        others = [member for member in group.members if member is not leader]
        follower = others[repetition % len(others)]
        for name, member, outstanding in (
            ("leader", leader, OUTSTANDING),
            ("follower", follower, OUTSTANDING),
            ("serial", leader, 1),
        ):
            run_name = f"{name}-{repetition}"
            measured[name].append(
                member.ask(Commit(run=run_name, outstanding=outstanding, seconds=seconds))
            )
    for name, title, bar in (
        ("leader", f"commits, {OUTSTANDING} outstanding on the leader", OUTSTANDING_BAR),
        ("follower", f"commits, {OUTSTANDING} outstanding on a follower", OUTSTANDING_BAR),
        ("serial", "commits, one outstanding on the leader", SERIAL_BAR),
    ):
        answers = measured[name]
        middle = sorted(answers, key=lambda answer: answer.p50_ms)[len(answers) // 2]
        yield median_of(
            title,
            [answer.files / answer.seconds for answer in answers],
            "files/s",
            bar=bar,
            detail=f"p50 {middle.p50_ms:.2f} ms, p99 {middle.p99_ms:.2f} ms",
        )


def _failover(group: Group) -> Measurement:
    gaps: list[float] = []
    for number in range(FAILOVERS):
        _say(f"fail-over {number + 1} of {FAILOVERS} ...")
        leader = group.leader()
        witness = next(member for member in group.members if member is not leader)
        witness.ask(StartWriting(run=f"failover-{number}"))
        time.sleep(_STEADY_SECONDS)
        killed_at = time.monotonic()
        leader.kill()
        time.sleep(_FAILOVER_SECONDS)
        times = witness.ask(StopWriting()).times
        gaps.append(longest_gap(times, killed_at, killed_at + _FAILOVER_SECONDS))
        leader.launch()
        leader.receive()
        leader.ask(Barrier())
        group.wait_applied()
    return median_of(
        "writes stand still after kill -9 of the leader",
        gaps,
        "s",
        bar=FAILOVER_BAR,
        detail=f"median of {FAILOVERS}, longest {max(gaps):.2f} s",
    )


def _million(group: Group) -> Iterator[Measurement]:
    _say(f"storing {FEW_FILES:,} files ...")
    leader = group.leader()
    leader.ask(Commit(run="few", outstanding=_FILL_OUTSTANDING, files=FEW_FILES))
    before, latency_before = _observe(group, "serial-few")
    _say(f"storing {MANY_FILES:,} files ...")
    more = MANY_FILES - FEW_FILES - _SERIAL_COMMITS
    filled = leader.ask(Commit(run="many", outstanding=_FILL_OUTSTANDING, files=more))
    after, latency_after = _observe(group, "serial-many")
    yield Measurement(
        name="resident memory, a million files more",
        value=max(after) - max(before),
        unit="MiB",
        bar=MEMORY_BAR,
        detail=f"{max(before):.0f} MiB with {FEW_FILES:,} files, {max(after):.0f} MiB with "
        f"{MANY_FILES:,}",
    )
    yield Measurement(
        name="commit latency, a million files to ten thousand",
        value=latency_after.p50_ms / latency_before.p50_ms,
        unit="times",
        bar=LATENCY_BAR,
        detail=f"medians {latency_before.p50_ms:.2f} ms and {latency_after.p50_ms:.2f} ms; "
        f"filled at {filled.files / filled.seconds:,.0f} files/s",
    )

    _say("killing a follower and starting it again ...")
    follower = group.followers()[0]
    follower.kill()
    began = time.monotonic()
    follower.launch()
    follower.receive()
    follower.ask(Barrier())
    yield Measurement(
        name="kill -9 and restart to ready, a million files",
        value=time.monotonic() - began,
        unit="s",
        bar=RESTART_BAR,
    )

    _say("adding an empty node ...")
    # Without its journal a member can only give the state, not the entries that led to it.
    for member in group.members:
        member.ask(Checkpoint())
    began = time.monotonic()
    group.add(group.leader())
    group.wait_applied()
    yield Measurement(
        name="download of the state to an empty node, a million files",
        value=time.monotonic() - began,
        unit="s",
        bar=DOWNLOAD_BAR,
        detail="until it has applied everything",
    )


def _observe(group: Group, run_name: str) -> tuple[list[float], Answer]:
    """Return every member's resident memory, and how one-by-one commits go on the leader."""
    group.wait_applied()
    latency = group.leader().ask(Commit(run=run_name, outstanding=1, files=_SERIAL_COMMITS))
    group.wait_applied()
    return [member.resident_mib() for member in group.members], latency


@contextlib.contextmanager
def _group(folder: Path) -> Iterator[Group]:
    folder.mkdir()
    group = Group(folder)
    try:
        _say("starting three members ...")
        group.start()
        yield group
    finally:
        group.close()


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
