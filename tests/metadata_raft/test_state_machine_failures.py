"""Every refusal by the state machine: its code, its words, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from metadata_raft.commands import (
    FAILURE_CODES,
    AdmitMember,
    ChangeRing,
    CreateBucket,
    CreateJoinToken,
    CreateKey,
    Failure,
    FilePut,
    IdempotencyKey,
    UpdateMember,
)
from tests.fakes.metadata import make_member
from tests.metadata_raft.golden_refusals import GOLDEN
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    propose,
    put_chunks,
    put_inline,
    stage,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    replica.do(CreateBucket(name="photos", actor=ADMIN, quota_bytes=5000))
    replica.do(put_inline("photos", "a.txt", b"first"))
    replica.do(CreateKey(key_id="writer", secret_hash=bytes(32), actor=ADMIN))
    replica.do(CreateKey(key_id="reader", secret_hash=bytes(32), actor=ADMIN, role="reader"))
    yield replica
    replica.close()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_refusal_names_what_is_wrong_and_changes_nothing(replica: Replica, name: str) -> None:
    """Code and sentence are exactly these, and no replicated table is touched."""
    command, code, detail = GOLDEN[name]
    assert replica.failure(command) == Failure(code=code, detail=detail)


def _expired(replica: Replica) -> Failure:
    proposal = propose(put_inline("photos", "late"), 900, not_after_ms=replica.time_ms - 1)
    return _failure(replica.apply([proposal])[0])


def _waits_too_long(replica: Replica) -> Failure:
    proposal = propose(
        put_inline("photos", "late"), 900, not_after_ms=replica.time_ms + 25 * 3_600_000
    )
    return _failure(replica.apply([proposal])[0])


def _restage_generation(replica: Replica) -> Failure:
    replica.advance_generations(2)
    return replica.failure(put_chunks("photos", "b", 1, generation=0))


def _restage_epoch(replica: Replica) -> Failure:
    replica.do(ChangeRing(expected_epoch=1, node_ids=(make_member(1).node_id,), raise_floor=True))
    return replica.failure(put_chunks("photos", "b", 1, oldest_epoch=1))


def _segment_before_its_turn(replica: Replica) -> Failure:
    replica.do(stage("photos", 1, 0, [1]))
    return replica.failure(stage("photos", 1, 2, [1]))


def _segment_changed(replica: Replica) -> Failure:
    replica.do(stage("photos", 1, 0, [1]))
    return replica.failure(stage("photos", 1, 0, [2]))


def _upload_of_another(replica: Replica) -> Failure:
    replica.do(stage("photos", 1, 0, [1]))
    return replica.failure(
        put_inline(
            "photos",
            "b",
            inline=None,
            upload_id=(1).to_bytes(16, "big"),
            size_bytes=1000,
            actor="writer",
        )
    )


def _key_reused(replica: Replica) -> Failure:
    for fingerprint in (b"one", b"two"):
        idempotency = IdempotencyKey(scope="s", key="k", fingerprint=fingerprint)
        result = replica.do(put_inline("photos", "b"), idempotency=idempotency)
    return _failure(result)


def _token_spent(replica: Replica) -> Failure:
    replica.do(CreateJoinToken(token_id="t", secret_hash=bytes(32), actor=ADMIN))
    replica.do(AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)))
    return replica.failure(AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(3)))


def _token_expired(replica: Replica) -> Failure:
    replica.do(CreateJoinToken(token_id="t", secret_hash=bytes(32), actor=ADMIN, lifetime_ms=1000))
    replica.time_ms += 1001
    return replica.failure(AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)))


def _restored_disk(replica: Replica) -> Failure:
    replica.do(UpdateMember(member=make_member(1), boot_counter=7))
    return replica.failure(UpdateMember(member=make_member(1), boot_counter=6))


SCENARIOS: dict[Callable[[Replica], Failure], Failure] = {
    _expired: Failure(
        code="request_expired", detail="The request came after its time; it was not carried out."
    ),
    _waits_too_long: Failure(
        code="invalid_command",
        detail="The request may wait longer than results are remembered.",
    ),
    _restage_generation: Failure(
        code="restage",
        detail="The chunks were written in generation 0, now it is 2.",
        retryable=True,
    ),
    _restage_epoch: Failure(
        code="restage",
        detail="A chunk was acknowledged in ring epoch 1, epochs below 2 are fenced.",
        retryable=True,
    ),
    _segment_before_its_turn: Failure(
        code="stale_expectation", detail="Segment 2 came before segment 1.", retryable=True
    ),
    _segment_changed: Failure(
        code="invalid_command",
        detail="Segment 0 is staged already, with other chunks or long ago.",
    ),
    _upload_of_another: Failure(code="no_such_upload", detail="No upload for 'b' has this id."),
    _key_reused: Failure(
        code="idempotency_key_reused",
        detail="The idempotency key 'k' was used for another request.",
    ),
    _token_spent: Failure(code="token_invalid", detail="The join token has been used already."),
    _token_expired: Failure(code="token_invalid", detail="The join token has expired."),
    _restored_disk: Failure(
        code="stale_expectation",
        detail="Boot 6 of node 00000000-0000-4000-8000-000000000001 is older than boot 7: "
        "its disk is a restored snapshot.",
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.strip("_"))
def test_a_refusal_that_depends_on_history(
    replica: Replica, scenario: Callable[[Replica], Failure]
) -> None:
    """Time, generation, epoch and former commands decide as the rules say."""
    assert scenario(replica) == SCENARIOS[scenario]


def test_bounds_on_keys_are_refusals(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys are full, new ones are refused, and old ones are kept."""
    monkeypatch.setattr("metadata_raft.request_results.IDEMPOTENCY_LIMIT", 1)
    monkeypatch.setattr("metadata_raft.apply_keys.KEY_LIMIT", 3)
    keys = [IdempotencyKey(scope="s", key=key, fingerprint=b"f") for key in "ab"]
    first = replica.do(put_inline("photos", "b"), idempotency=keys[0])
    second = replica.do(put_inline("photos", "c"), idempotency=keys[1])
    assert second == Failure(
        code="idempotency_keys_full",
        detail="1 idempotency keys are remembered already.",
        retryable=True,
    )
    assert replica.do(put_inline("photos", "b"), idempotency=keys[0]) == first
    assert replica.failure(CreateKey(key_id="k", secret_hash=bytes(32), actor=ADMIN)) == Failure(
        code="too_many_keys", detail="There are 3 keys already."
    )


@pytest.mark.parametrize(
    "command",
    [
        b"\xc0",
        msgspec.msgpack.encode({"type": "NoSuchCommand"}),
        msgspec.msgpack.encode({"type": "PutFile"}),
        msgspec.msgpack.encode({"type": "DeleteBucket", "name": 3, "actor": "a"}),
        msgspec.msgpack.encode([1, 2, 3]),
        b"\x83\xa4type\xacDeleteBucket\xa4name\xa2\xff\xfe\xa5actor\xa1a",
    ],
)
def test_a_command_that_cannot_be_read_is_a_refusal(replica: Replica, command: bytes) -> None:
    """Damage inside a proposal stops nobody: it is answered, and its neighbours take effect."""
    answers = replica.apply(
        [replica.propose(command), replica.propose(put_inline("photos", "neighbour"))]
    )
    assert _failure(answers[0]).code == "invalid_command"
    assert isinstance(answers[1], FilePut)


def test_every_code_is_shown_here() -> None:
    """Golden texts exist for the whole list of codes, and for no other."""
    shown = {code for _, code, _ in GOLDEN.values()}
    shown |= {failure.code for failure in SCENARIOS.values()}
    shown |= {"idempotency_keys_full", "too_many_keys"}
    # test_state_machine_departures.py, test_schema_versions.py
    shown |= {"member_removed", "cluster_version_too_old"}
    assert shown == FAILURE_CODES


def _failure(result: object) -> Failure:
    assert isinstance(result, Failure), result
    return result
