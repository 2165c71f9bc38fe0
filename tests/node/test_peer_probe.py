"""Whether the other nodes answer, as `status` shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.peer_probe import PeerProbe, Probed
from ring.errors import PeerUnreachableError
from ring.members import Member
from ring.peer_wire import PeerStatus
from tests.fakes.metadata import make_member


class FakeClient:
    def __init__(self) -> None:
        self.down: set[str] = set()
        self.unsettled: set[str] = set()
        self.serving: set[str] = set()
        self.questions = 0
        self.asked_twice = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()

    async def status(self, member: Member) -> PeerStatus:
        self.questions += 1
        if self.questions == 2:
            self.asked_twice.set()
        down = member.node_id in self.down
        await self.hold.wait()
        if down:
            raise PeerUnreachableError(member.node_id, "it is down")
        return PeerStatus(
            node_id=member.node_id,
            epoch=1,
            generation=0,
            chunks=0,
            stored_bytes=0,
            writable=True,
            requests_active=0,
            settled=member.node_id not in self.unsettled,
            figures={"chunks": 7.0},
            clients_active=member.node_id in self.serving,
        )


def make_probe(
    client: FakeClient, clock: Callable[[], float] = lambda: 0.0
) -> tuple[PeerProbe, list[str]]:
    members = [make_member(1), make_member(2), make_member(3)]
    ids = [member.node_id for member in members]
    return PeerProbe(client, ids[0], lambda: members, clock), ids


def reached(probe: PeerProbe, node_id: str) -> bool | None:
    probed = probe.probed(node_id)
    return probed.reachable if probed is not None else None


async def test_a_node_is_down_as_long_as_it_does_not_answer() -> None:
    """Unknown at first, then as the last probe found it; oneself is never asked."""
    client = FakeClient()
    probe, (own, second, third) = make_probe(client)
    client.down = {own, third}
    assert reached(probe, second) is None
    await probe.work()
    assert (reached(probe, second), reached(probe, third)) == (True, False)
    assert reached(probe, own) is None
    client.down = {second}
    await probe.work()
    assert (reached(probe, second), reached(probe, third)) == (False, True)


async def test_what_a_node_said_last_is_kept_with_its_age() -> None:
    """A silent node shows how long it has been silent, and its last figures; who left has none."""
    client, now = FakeClient(), [100.0]
    members = [make_member(1), make_member(2), make_member(3)]
    second, third = members[1].node_id, members[2].node_id
    probe = PeerProbe(client, members[0].node_id, lambda: members, lambda: now[0])
    client.down = {third}
    await probe.work()
    now[0], client.down = 130.0, {second, third}
    await probe.work()
    probed = probe.probed(second)
    assert probed is not None
    assert probed.answer is not None
    assert (probed.reachable, probed.last_seen_seconds) == (False, 30.0)
    assert probed.answer.figures == {"chunks": 7.0}
    assert probe.probed(third) == Probed(False, None, None)
    del members[1]
    await probe.work()
    assert probe.probed(second) is None


async def test_who_asks_gets_what_was_said_afterwards_and_shares_the_round() -> None:
    """A hundred callers at once cost two rounds: the one under way, and one begun after it."""
    client = FakeClient()
    probe, (_, second, _) = make_probe(client)
    client.hold.clear()
    under_way = asyncio.create_task(probe.work())
    await client.asked_twice.wait()
    callers = [asyncio.create_task(probe.refresh()) for _ in range(100)]
    await asyncio.sleep(0)
    client.down = {second}
    client.hold.set()
    await asyncio.gather(under_way, *callers)
    assert client.questions == 4
    assert reached(probe, second) is False


async def test_the_others_are_settled_when_all_of_them_say_so_at_this_epoch() -> None:
    """A node that is down, still copying, or at another epoch, keeps a cluster unsettled."""
    client = FakeClient()
    probe, (own, second, third) = make_probe(client)
    assert not probe.settled([own, second, third], 1)
    await probe.work()
    assert probe.settled([own, second, third], 1)
    assert not probe.settled([own, second, third], 2)
    client.unsettled = {third}
    await probe.work()
    assert not probe.settled([own, second, third], 1)
    # Out of the ring, and yet with copies that belong to the others.
    assert not probe.settled([own, second], 1)
    client.down = {third}
    await probe.work()
    assert probe.settled([own, second], 1)
    client.unsettled, client.down = set(), {second}
    await probe.work()
    assert not probe.settled([own, second, third], 1)


async def test_clients_of_other_nodes_are_noticed() -> None:
    """Copies come from nodes that serve clients themselves, so their clients count as well; a node
    that does not answer has none."""
    client = FakeClient()
    probe, (_, second, third) = make_probe(client)
    assert not probe.clients_active()
    client.serving = {third}
    await probe.work()
    assert probe.clients_active()
    client.down = {third}
    await probe.work()
    assert not probe.clients_active()
    client.serving = {second, third}
    await probe.work()
    assert probe.clients_active()
