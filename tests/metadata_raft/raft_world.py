"""A simulated metadata group: real replicas on a fake network, fake disks, and a fake state.

Every node runs the product's `Replica`; time, messages, disks and clocks are simulated and seeded.
The world checks, at every step, what must never be broken:

- one leader per term, and the same entry at the same index wherever one is applied;
- an acknowledged command is in the state for good, once; a command that was "not submitted" never;
- a read that was answered shows every command acknowledged before the read began;
- state time never goes back.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from metadata_raft.batching import Draft
from metadata_raft.commands import AdvanceGeneration, SetMemberStage, decode_command, decode_entry
from metadata_raft.commands import encode as encode_command
from metadata_raft.configuration import Configuration
from metadata_raft.errors import MetadataError, NotSubmittedError
from metadata_raft.log import ReplicatedLog
from metadata_raft.messages import Message
from metadata_raft.records import AppliedState
from metadata_raft.replica import Replica
from metadata_raft.settings import RaftTiming
from ring.members import NodeId
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.fakes.network import SimulatedLinks, SimulatedNetwork, Weather
from tests.metadata_raft.member_model import MemberModel

TICK = 0.02


def _applied_state(index: int, term: int, time_ms: int) -> AppliedState:
    return AppliedState(
        index=index, term=term, time_ms=time_ms, generation=0, epoch=0, members_version=0
    )


class FakeState:
    """A state machine that is a list of numbers, with request results as the real one has them.

    A number is the `expected` of an `AdvanceGeneration`; the result is its position in the list.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.numbers: list[int] = []
        self.results: dict[bytes, bytes] = {}
        self.stages: dict[NodeId, str] = {}
        """Where there is no `cluster`."""
        self.cluster: MemberModel | None = copy.deepcopy(world.cluster)
        self.applied = _applied_state(0, 0, 0)
        self._next = self.applied

    def copy(self) -> FakeState:
        copied = FakeState(self._world)
        copied.numbers = list(self.numbers)
        copied.results = dict(self.results)
        copied.cluster = copy.deepcopy(self.cluster)
        copied.stages = dict(self.stages)
        copied.applied = copied._next = self.applied
        return copied

    def apply(self, index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
        if index <= self._next.index:
            return []
        assert index == self._next.index + 1
        self._world.check_applied(index, term, entry)
        time_ms = self._next.time_ms
        answers = []
        if entry:
            decoded = decode_entry(entry)
            assert decoded.time_ms >= time_ms, "state time went back"
            time_ms = decoded.time_ms
            for proposal in decoded.proposals:
                request_id = proposal.request_id
                if request_id not in self.results:
                    assert proposal.not_after_ms >= time_ms
                    self.results[request_id] = self._carry_out(bytes(proposal.command))
                answers.append((request_id, self.results[request_id]))
        self._next = _applied_state(index, term, time_ms)
        return answers

    def _carry_out(self, encoded: bytes) -> bytes:
        command = decode_command(encoded)
        if self.cluster is not None and (outcome := self.cluster.apply(command)) is not None:
            return outcome.encode()
        if isinstance(command, SetMemberStage):
            if self.stages.get(command.node_id) == command.expected_stage:
                self.stages[command.node_id] = command.stage
            return b"stage"
        assert isinstance(command, AdvanceGeneration)
        self.numbers.append(command.expected)
        return str(len(self.numbers) - 1).encode()

    def flush(self) -> None:
        self.applied = self._next

    def recorded_stages(self) -> dict[NodeId, str]:
        if self.cluster is None:
            return self.stages
        return {node_id: member.stage for node_id, member in self.cluster.members.items()}


@dataclass
class Node:
    """One simulated machine: what survives a crash, and the replica while it runs."""

    node_id: NodeId
    disk: JournalDisk
    base: Configuration
    clock_skew_ms: int = 0
    saved: list[FakeState] = field(default_factory=list)
    """States a crash may fall back to: all since the last checkpoint."""
    replica: Replica | None = None
    journal: FakeJournal | None = None
    state: FakeState | None = None


class World:
    """The cluster. Use through `simulation`."""

    cluster: MemberModel | None = None
    """What every state begins with, where members are more than stages."""
    timing = RaftTiming()

    def __init__(self, seed: int, weather: Weather) -> None:
        self.generator = random.Random(seed)
        self.network = SimulatedNetwork(random.Random(seed + 1), weather)
        self.nodes: dict[NodeId, Node] = {}
        self.leaders: dict[int, NodeId] = {}
        self.history: dict[int, tuple[int, bytes]] = {}
        self.acknowledged: dict[int, int] = {}
        """Number to position, as told to a client."""
        self.refused: set[int] = set()
        self.unknown: set[int] = set()
        self.reads_answered = 0
        self.reads_failed = 0
        self.downloads = 0
        self._requests: dict[bytes, int] = {}
        self._reads: dict[tuple[NodeId, int], int] = {}
        self._next_number = 0
        self._next_token = 0

    # --- building and breaking ----------------------------------------------------------------

    def add(self, node_id: NodeId, base: Configuration | None = None, skew_ms: int = 0) -> Node:
        """A new machine; `base` is its first configuration, none for one that shall join."""
        node = Node(node_id, JournalDisk(), base or Configuration(), skew_ms)
        node.saved.append(FakeState(self))
        self.nodes[node_id] = node
        self.start(node)
        return node

    def start(self, node: Node) -> None:
        state = node.saved[-1].copy()
        journal = FakeJournal(node.disk)
        replica = Replica(
            node_id=node.node_id,
            log=ReplicatedLog(journal, node.base),
            state=state,
            links=SimulatedLinks(self.network, node.node_id),
            stages=lambda: node.state.recorded_stages() if node.state is not None else {},
            timing=self.timing,
            clock=self.network.clock,
            wall_clock_ms=lambda: int(self.network.now * 1000) + node.clock_skew_ms,
            generator=random.Random(self.generator.random()),
        )
        node.replica, node.journal, node.state = replica, journal, state
        self.network.join(node.node_id, _Endpoint(self, node, replica))
        self._tick(node, replica)

    def crash(self, node: Node) -> None:
        """Power off: unsynced entries and commits of the state may be lost."""
        assert node.journal is not None
        node.journal.crash(self.generator)
        keep = self.generator.randrange(len(node.saved))
        del node.saved[keep + 1 :]
        node.replica = node.journal = node.state = None
        self.network.leave(node.node_id)

    def checkpoint(self, node: Node) -> None:
        """Make the state durable, drop the log before it (M4)."""
        assert node.replica is not None
        assert node.state is not None
        node.saved = [node.state.copy()]
        index = node.state.applied.index
        if index >= node.replica.log.first_index:
            node.base = node.replica.log.configuration_at(index)
            node.replica.log.compact(index)

    # --- clients ------------------------------------------------------------------------------

    def submit(self, node: Node, *, timeout: float = 5.0) -> int:
        """Have a fresh number appended through a node; returns the number."""
        assert node.replica is not None
        number = self._next_number
        self._next_number += 1
        request_id = number.to_bytes(16, "big")
        self._requests[request_id] = number
        now = self.network.now
        command = encode_command(AdvanceGeneration(expected=number))
        node.replica.submit(
            Draft(request_id, command, 600_000),
            deadline=now + timeout,
            submit_before=now + min(timeout, 1.0),
        )
        self.wake(node)
        return number

    def read(self, node: Node) -> None:
        assert node.replica is not None
        token = self._next_token
        self._next_token += 1
        floor = max(self.acknowledged.values(), default=-1)
        self._reads[node.node_id, token] = floor
        node.replica.read(token, self.network.now + 1.0)
        self.wake(node)

    # --- looking ------------------------------------------------------------------------------

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.replica is not None]

    def leader(self) -> Node | None:
        """The running leader of the latest term, if it is established."""
        leading = [
            (node.replica.engine.term, node)
            for node in self.running()
            if node.replica is not None and node.replica.engine.is_established
        ]
        return max(leading, key=lambda each: each[0])[1] if leading else None

    def wait_leader(self, *, limit: float = 10.0) -> Node:
        self.network.run_until(lambda: self.leader() is not None, limit=limit)
        leader = self.leader()
        assert leader is not None
        return leader

    def settle(self, *, limit: float = 30.0) -> None:
        """Heal everything and wait until all running members have applied the same."""
        self.network.weather = Weather()
        self.network.heal()
        for node in self.nodes.values():
            if node.replica is None:
                self.start(node)

        def settled() -> bool:
            leader = self.leader()
            if leader is None or leader.replica is None:
                return False
            members = leader.replica.engine.configuration.members
            indices = {
                node.state.applied.index
                for node in self.running()
                if node.state is not None and node.node_id in members
            }
            return indices == {leader.replica.log.last_index}

        self.network.run_until(settled, limit=limit)

    def check_final(self) -> None:
        """After `settle`: nothing acknowledged lost, each once, refused never, all states equal."""
        leader = self.leader()
        assert leader is not None
        assert leader.state is not None
        assert leader.replica is not None
        numbers = leader.state.numbers
        assert len(numbers) == len(set(numbers)), "a command took effect twice"
        for number, position in self.acknowledged.items():
            assert numbers[position] == number, f"acknowledged command {number} is lost"
        assert not self.refused & set(numbers), "a command that was refused took effect"
        for node in self.running():
            if node.node_id in leader.replica.engine.configuration.members:
                assert node.state is not None
                assert node.state.numbers == numbers
                assert node.state.results == leader.state.results
                assert node.state.cluster == leader.state.cluster

    def check_applied(self, index: int, term: int, entry: bytes) -> None:
        known = self.history.setdefault(index, (term, entry))
        assert known == (term, entry), f"two entries were applied at index {index}"

    # --- driving ------------------------------------------------------------------------------

    def wake(self, node: Node) -> None:
        """Let a node take a step in a moment, as the raft thread's loop does."""
        replica = node.replica
        self.network.after(0.00005, lambda: self._advance(node, replica))

    def _advance(self, node: Node, replica: Replica | None) -> None:
        if replica is None or node.replica is not replica:
            return
        if replica.advance():
            self.wake(node)
        self._collect(node, replica)

    def _tick(self, node: Node, replica: Replica) -> None:
        if node.replica is not replica:
            return
        replica.housekeep()
        self._advance(node, replica)
        if replica.state_needed_from is not None:
            self._download(node, replica, replica.state_needed_from)
        self.network.after(TICK, lambda: self._tick(node, replica))

    def _download(self, node: Node, replica: Replica, source_id: NodeId) -> None:
        source = self.nodes[source_id]
        replica.state_needed_from = None
        if source.replica is None or source.state is None or node.state is None:
            return
        if source.state.applied.index <= node.state.applied.index:
            return
        self.downloads += 1
        state = source.state.copy()
        node.state, node.saved = state, [state.copy()]
        index = state.applied.index
        node.base = source.replica.log.configuration_at(index)
        replica.installed(node.base, state)
        for request_id in replica.pending_request_ids():
            if request_id in state.results:
                replica.answer(request_id, state.results[request_id])

    def _collect(self, node: Node, replica: Replica) -> None:
        engine = replica.engine
        if engine.is_leader:
            known = self.leaders.setdefault(engine.term, node.node_id)
            assert known == node.node_id, f"two leaders in term {engine.term}"
        assert node.state is not None
        if node.saved[-1].applied is not node.state.applied:
            node.saved = [*node.saved[-4:], node.state.copy()]
        results, replica.results = replica.results, []
        for request_id, outcome in results:
            if request_id in self._requests:
                self._note_outcome(self._requests[request_id], outcome)
        reads, replica.reads_done = replica.reads_done, []
        for token, index in reads:
            floor = self._reads.pop((node.node_id, token))
            if isinstance(index, int):
                self.reads_answered += 1
                assert len(node.state.numbers) > floor, "a read missed an acknowledged command"
            else:
                self.reads_failed += 1

    def _note_outcome(self, number: int, outcome: bytes | MetadataError) -> None:
        if isinstance(outcome, bytes):
            self.acknowledged[number] = int(outcome)
        elif isinstance(outcome, NotSubmittedError):
            self.refused.add(number)
        else:
            self.unknown.add(number)


@dataclass
class _Endpoint:
    world: World
    node: Node
    replica: Replica

    def deliver(self, sender: NodeId, message: Message) -> None:
        self.replica.receive(sender, message)
        self.world.wake(self.node)

    def peer_connected(self, node_id: NodeId) -> None:
        self.replica.peer_connected(node_id)
        self.world.wake(self.node)

    def peer_lost(self, node_id: NodeId) -> None:
        self.replica.peer_lost(node_id)
        self.world.wake(self.node)


@contextmanager
def simulation(seed: int, weather: Weather | None = None) -> Iterator[World]:
    """A world whose time is the library's too."""
    world = World(seed, weather or Weather())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pysyncobj.syncobj.monotonicTime", world.network.clock)
        yield world


def voters(world: World, *names: NodeId) -> list[Node]:
    """A cluster of these nodes, all voters from the start."""
    base = Configuration(names)
    nodes = [world.add(name, base) for name in names]
    for node in nodes:
        for saved in [*node.saved, node.state]:
            assert saved is not None
            saved.stages.update(dict.fromkeys(names, "voter"))
    return nodes
