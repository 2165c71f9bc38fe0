"""Admission: the bearer of a token learns the secret, once, and nobody else ever does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.client import RefusedError
from gateway.documents import Problem
from gateway.errors import ApiError
from metadata_raft.commands import SYSTEM
from node import join
from node.data_directory import Identity
from node.errors import JoinError
from node.join import Admission, JoinToken, ask_to_join
from ring.members import Member
from tests.fakes.metadata import FakeMetadata, make_member

CLUSTER = Identity(
    cluster_id="00000000-0000-4000-8000-00000000c1d0",
    node_id=make_member(1).node_id,
    stage="member",
    cluster_secret="5e" * 32,
)


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[FakeMetadata]:
    fake = FakeMetadata(str(tmp_path / "state.sqlite"))
    await fake.bootstrap()
    yield fake
    await fake.stop()


@pytest.fixture
def admission(metadata: FakeMetadata, monkeypatch: pytest.MonkeyPatch) -> Admission:
    """A cluster's side, which the joining side reaches without a network in between."""
    made = Admission(metadata, CLUSTER)

    async def ask(_urls: object, envelope: bytes) -> bytes:
        return await made.answer(envelope)

    monkeypatch.setattr(join, "_ask", ask)
    return made


async def new_token(admission: Admission, lifetime_seconds: int = 60) -> JoinToken:
    made = await admission.create_token(actor=SYSTEM, lifetime_seconds=lifetime_seconds)
    return JoinToken.parse(made.token)


def joining(token: JoinToken, number: int = 2) -> tuple[Identity, Member]:
    identity = Identity(
        cluster_id=token.cluster_id, node_id=make_member(number).node_id, stage="joining"
    )
    return identity, make_member(number)


async def test_the_bearer_of_a_token_is_admitted_and_told_the_secret(
    admission: Admission, metadata: FakeMetadata
) -> None:
    """It knows the cluster's secret, incarnation and where to find the log."""
    token = await new_token(admission)
    identity = await ask_to_join(token, *joining(token))
    assert identity.cluster_secret == CLUSTER.cluster_secret
    assert identity.incarnation == CLUSTER.incarnation
    assert identity.seeds == ((make_member(1).node_id, make_member(1).raft_address),)
    with metadata.snapshot() as snapshot:
        stages = {record.member.node_id: record.stage for record in snapshot.members()}
    assert stages == {make_member(1).node_id: "voter", make_member(2).node_id: "joining"}


async def test_the_same_node_may_ask_again_and_another_may_not(admission: Admission) -> None:
    """A crash before the answer was stored costs nothing; a copied token is worth nothing."""
    token = await new_token(admission)
    first = await ask_to_join(token, *joining(token))
    assert await ask_to_join(token, *joining(token)) == first
    with pytest.raises(ApiError, match="has been used already"):
        await ask_to_join(token, *joining(token, 3))


async def test_an_expired_token_admits_nobody(admission: Admission, metadata: FakeMetadata) -> None:
    """State time decides."""
    token = await new_token(admission, lifetime_seconds=60)
    metadata.advance_time(61_000)
    with pytest.raises(ApiError, match="has expired"):
        await ask_to_join(token, *joining(token))


async def test_a_wrong_secret_learns_nothing(admission: Admission) -> None:
    """Knowing a token's id is not enough."""
    token = msgspec.structs.replace(await new_token(admission), secret=bytes(32))
    with pytest.raises(ApiError, match="was not sealed with the token") as raised:
        await ask_to_join(token, *joining(token))
    assert raised.value.code == "token_invalid"


async def test_an_unknown_token_and_noise_are_refused(admission: Admission) -> None:
    """Neither a token of another cluster nor random bytes are an internal error."""
    token = msgspec.structs.replace(await new_token(admission), token_id="ffff")
    with pytest.raises(ApiError, match="not one of this cluster"):
        await ask_to_join(token, *joining(token))
    for noise in (b"", b"\x00", b"x" * 1000, msgspec.msgpack.encode(("id", b""))):
        with pytest.raises(ApiError):
            await admission.answer(noise)


async def test_nothing_secret_crosses_the_network_in_the_clear(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever records both messages has neither the token's secret nor the cluster's."""
    token = await new_token(admission)
    recorded: list[bytes] = []

    async def ask(_urls: object, envelope: bytes) -> bytes:
        recorded.extend((envelope, await admission.answer(envelope)))
        return recorded[-1]

    monkeypatch.setattr(join, "_ask", ask)
    await ask_to_join(token, *joining(token))
    for message in recorded:
        assert token.secret not in message
        assert token.secret_hash() not in message
        assert bytes.fromhex(CLUSTER.cluster_secret) not in message


async def test_an_answer_belongs_to_its_question(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that was recorded can't be put in the place of another one, nor be changed."""
    token = await new_token(admission)
    recorded: list[bytes] = []

    async def ask(_urls: object, envelope: bytes) -> bytes:
        recorded.append(await admission.answer(envelope))
        return recorded[0]

    monkeypatch.setattr(join, "_ask", ask)
    await ask_to_join(token, *joining(token))
    with pytest.raises(JoinError, match="not from the cluster"):
        await ask_to_join(token, *joining(token))
    recorded[0] = recorded[1][:-1] + bytes([recorded[1][-1] ^ 1])
    with pytest.raises(JoinError, match="not from the cluster"):
        await ask_to_join(token, *joining(token))


async def test_a_token_survives_being_copied_and_says_when_it_did_not(
    admission: Admission,
) -> None:
    """Spaces around it don't matter; a lost character does, and no secret is printed."""
    token = await new_token(admission)
    assert JoinToken.parse(f"  {token.text()}\n") == token
    assert token.secret.hex() not in repr(token)
    with pytest.raises(JoinError, match="is not one"):
        JoinToken.parse(token.text()[:-9])


async def test_nobody_joins_with_the_addresses_of_a_member(
    admission: Admission, metadata: FakeMetadata
) -> None:
    """A wiped node, started again as it was, is told which one to remove; the token stays good."""
    token = await new_token(admission)
    await ask_to_join(token, *joining(token))
    again = await new_token(admission)
    identity, wiped = joining(again, 3)
    for address in ("peer_address", "raft_address"):
        taken = msgspec.structs.replace(wiped, **{address: getattr(make_member(2), address)})
        with pytest.raises(ApiError, match=f"holdfast remove {make_member(2).node_id}") as raised:
            await ask_to_join(again, identity, taken)
        assert (raised.value.code, raised.value.retryable) == ("address_taken", False)
    with metadata.snapshot() as snapshot:
        assert len(snapshot.members()) == 2
    await ask_to_join(again, identity, wiped)


async def test_m7_a_node_that_a_restore_left_behind_does_not_answer_for_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its refusal is heard to the end of the list only: a token names all addresses of members."""
    asked: list[str] = []

    class Client:
        def __init__(self, url: str, tls: object) -> None:
            self._url = url

        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def join(self, envelope: bytes) -> bytes:
            asked.append(self._url)
            if self._url == "old":
                raise RefusedError(
                    Problem(
                        type="",
                        title="",
                        status=403,
                        code="token_invalid",
                        detail="the token is not one of ours",
                        retryable=False,
                    )
                )
            return envelope[::-1]

    monkeypatch.setattr(join, "GatewayClient", Client)
    assert await join._ask(["old", "new"], b"abc") == b"cba"
    with pytest.raises(JoinError, match="not one of ours"):
        await join._ask(["old"], b"abc")
    assert asked == ["old", "new", "old"]
