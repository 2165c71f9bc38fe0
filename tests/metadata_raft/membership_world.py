"""A simulated group whose members come and go: the product's leader jobs on simulated replicas.

`raft_world.py` simulates the Raft group; here its states also hold the members, as a plain model
(`member_model.py`). The leader decides with the product's own functions what to propose, every node
reports after a while that it has settled, and operators repeat what they want until it is accepted.
"""

from __future__ import annotations

from collections.abc import Callable

from metadata_raft.batching import Draft
from metadata_raft.commands import (
    SYSTEM,
    AdmitMember,
    Command,
    CreateJoinToken,
    ReportSettled,
    SetMemberIntent,
    encode,
)
from metadata_raft.configuration import Configuration
from metadata_raft.membership import voters_wanted
from metadata_raft.records import ClusterRecord, MemberRecord
from node.cluster_worker import ring_change
from node.departure_worker import departure_step
from ring.members import Member, Membership, NodeId
from tests.metadata_raft.member_model import REPLICAS, MemberModel, ModelMember
from tests.metadata_raft.raft_world import Node, World

JOB_SECONDS = 0.25
"""How often the jobs of a node look."""

REPEAT_SECONDS = 1.0
"""How often an operator repeats what has not come true."""


class MembershipWorld:
    """The members of a `World`; it begins with `founders`, all voters and in the ring."""

    def __init__(self, world: World, founders: str) -> None:
        self.world = world
        world.cluster = MemberModel(founders[0])
        world.cluster.members = {name: ModelMember(stage="voter") for name in founders}
        world.cluster.epochs = {1: frozenset(founders)}
        self.dead: set[NodeId] = set()
        """Those that will never run again."""
        self._proposed: dict[NodeId, bytes] = {}
        for name in founders:
            self._start(name, Configuration(tuple(founders)))

    # --- what operators do --------------------------------------------------------------------

    def join(self, name: NodeId) -> None:
        """A new machine with a token of its own; it asks until it is admitted."""
        self._start(name, None)
        token = CreateJoinToken(token_id=name, secret_hash=bytes(32), actor=SYSTEM)
        admission = AdmitMember(token_id=name, secret_hash=bytes(32), member=_member(name))
        self._insist(
            (token, admission), lambda: name in self.model.members or name in self.model.departed
        )

    def want(self, name: NodeId, intent: str, *, reduce_copies: bool = False) -> None:
        """Say what is wanted of a member until it is recorded, or the member has gone."""
        command = SetMemberIntent(
            node_id=name, actor=SYSTEM, intent=intent, reduce_copies=reduce_copies
        )

        def recorded() -> bool:
            member = self.model.members.get(name)
            return name in self.model.departed or (member is not None and member.intent == intent)

        self._insist((command,), recorded)

    def kill(self, name: NodeId) -> None:
        """A machine burns down."""
        node = self.world.nodes[name]
        if node.replica is not None:
            self.world.crash(node)
        self.dead.add(name)

    # --- looking ------------------------------------------------------------------------------

    @property
    def model(self) -> MemberModel:
        """The members as the newest state of all knows them."""
        states = [node.saved[-1] for node in self.world.nodes.values()]
        newest = max(states, key=lambda state: state.applied.index).cluster
        assert newest is not None
        return newest

    def is_at_rest(self, members: str) -> bool:
        """Whether exactly these are members, all of them in the ring and with the right vote."""
        leader = self.world.leader()
        if leader is None or leader.replica is None or leader.state is None:
            return False
        configuration = leader.replica.engine.configuration
        model = leader.state.cluster
        assert model is not None
        voters = [name for name, member in model.members.items() if member.stage == "voter"]
        return (
            set(model.members) == set(configuration.members) == set(members) == model.ring
            and set(voters) == set(configuration.voters)
            and len(voters) == voters_wanted(len(members))
            and all(member.settled == model.epoch for member in model.members.values())
            and {
                node.state.applied.index
                for node in self.world.running()
                if node.state is not None and node.node_id in members
            }
            == {leader.replica.log.last_index}
        )

    # --- inside -------------------------------------------------------------------------------

    def _start(self, name: NodeId, base: Configuration | None) -> None:
        node = self.world.add(name, base)
        self._tend(node)

    def _tend(self, node: Node) -> None:
        """The jobs of a node, for as long as the world lasts; idle while it is down."""
        replica, state = node.replica, node.state
        if replica is not None and state is not None and state.cluster is not None:
            busy = self._proposed.get(node.node_id) in replica.pending_request_ids()
            command = None if busy else self._next_command(node, state.cluster)
            if command is not None:
                self._proposed[node.node_id] = self._submit(node, command)
        self.world.network.after(JOB_SECONDS, lambda: self._tend(node))

    def _next_command(self, node: Node, model: MemberModel) -> Command | None:
        assert node.replica is not None
        own = model.members.get(node.node_id)
        if own is not None and node.node_id in model.ring and own.settled < model.epoch:
            if self.world.generator.random() < 0.3:
                return ReportSettled(node_id=node.node_id, epoch=model.epoch)
            return None
        if not node.replica.engine.is_leader:
            return None
        cluster, ring, members = _records(model)
        removed = node.replica.committed_configuration().removed
        return ring_change(cluster, ring, members) or departure_step(cluster, members, removed)

    def _insist(self, commands: tuple[Command, ...], done: Callable[[], bool]) -> None:
        if done():
            return
        running = self.world.running()
        if running:
            for command in commands:
                self._submit(self.world.generator.choice(running), command)
        self.world.network.after(REPEAT_SECONDS, lambda: self._insist(commands, done))

    def _submit(self, node: Node, command: Command) -> bytes:
        assert node.replica is not None
        request_id = self.world.generator.randbytes(16)
        now = self.world.network.now
        node.replica.submit(
            Draft(request_id, encode(command), 600_000), deadline=now + 3, submit_before=now + 1
        )
        self.world.wake(node)
        return request_id


def _member(name: NodeId) -> Member:
    return Member(node_id=name, peer_address="", raft_address="", client_url="")


def _records(model: MemberModel) -> tuple[ClusterRecord, Membership, list[MemberRecord]]:
    """What a snapshot of the state would show."""
    cluster = ClusterRecord(
        cluster_id="c",
        cluster_version=2,
        generation=0,
        epoch=model.epoch,
        epoch_floor=model.epoch_floor,
        replicas=REPLICAS,
    )
    ring = Membership(epoch=model.epoch, members=tuple(map(_member, sorted(model.ring))))
    members = [
        MemberRecord(
            member=_member(name),
            stage=member.stage,
            in_ring=name in model.ring,
            boot_counter=1,
            software_version="",
            intent=member.intent,
            settled_epoch=member.settled,
        )
        for name, member in sorted(model.members.items())
    ]
    return cluster, ring, members
