"""Whether the other nodes answer, as `status` shows it."""

from __future__ import annotations

from node.peer_probe import PeerProbe
from ring.errors import PeerUnreachableError
from ring.members import Member
from ring.peer_wire import PeerStatus
from tests.fakes.metadata import make_member


class FakeClient:
    def __init__(self) -> None:
        self.down: set[str] = set()
        self.unsettled: set[str] = set()

    async def status(self, member: Member) -> PeerStatus:
        if member.node_id in self.down:
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
        )


async def test_a_node_is_down_as_long_as_it_does_not_answer() -> None:
    """Unknown at first, then as the last probe found it; oneself is never asked."""
    client, members = FakeClient(), [make_member(1), make_member(2), make_member(3)]
    own, second, third = (member.node_id for member in members)
    client.down = {own, third}
    probe = PeerProbe(client, own, lambda: members)
    assert probe.reachable(second) is None
    await probe.work()
    assert (probe.reachable(second), probe.reachable(third)) == (True, False)
    assert probe.reachable(own) is None
    client.down = {second}
    await probe.work()
    assert (probe.reachable(second), probe.reachable(third)) == (False, True)


async def test_the_others_are_settled_when_all_of_them_say_so_at_this_epoch() -> None:
    """A node that is down, still copying, or at another epoch, keeps a cluster unsettled."""
    client, members = FakeClient(), [make_member(1), make_member(2), make_member(3)]
    own, second, third = (member.node_id for member in members)
    probe = PeerProbe(client, own, lambda: members)
    assert not probe.settled([own, second, third], 1)
    await probe.work()
    assert probe.settled([own, second, third], 1)
    assert not probe.settled([own, second, third], 2)
    client.unsettled = {third}
    await probe.work()
    assert not probe.settled([own, second, third], 1)
    assert probe.settled([own, second], 1)
    client.unsettled, client.down = set(), {second}
    await probe.work()
    assert not probe.settled([own, second, third], 1)
