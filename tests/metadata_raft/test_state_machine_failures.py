"""Every refusal by the state machine: its code, its words, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from metadata_raft.commands import (
    FAILURE_CODES,
    SYSTEM,
    AbortUpload,
    AdmitMember,
    AdvanceGeneration,
    BootstrapCluster,
    ChangeRing,
    Command,
    CreateBucket,
    CreateJoinToken,
    CreateKey,
    DeleteBucket,
    DeleteFile,
    Failure,
    FilePut,
    IdempotencyKey,
    Preconditions,
    RevokeKey,
    SetClusterVersion,
    SetMemberStage,
    UpdateBucket,
    UpdateMember,
)
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    chunk_list,
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


GOLDEN: dict[str, tuple[Command, str, str]] = {
    "bucket name": (
        CreateBucket(name="Photos", actor=ADMIN),
        "invalid_command",
        (
            "The bucket name 'Photos' may hold only a-z, 0-9 and hyphens, "
            "and neither begin nor end with a hyphen."
        ),
    ),
    "visibility": (
        CreateBucket(name="music", actor=ADMIN, visibility="open"),
        "invalid_command",
        "'open' is no visibility.",
    ),
    "visibility, later": (
        UpdateBucket(name="photos", actor=ADMIN, visibility="open", hidden=True),
        "invalid_command",
        "'open' is no visibility.",
    ),
    "bucket of another": (
        CreateBucket(name="photos", actor="writer"),
        "bucket_exists",
        "The bucket 'photos' belongs to another key.",
    ),
    "anonymous makes a bucket": (
        CreateBucket(name="music", actor=""),
        "forbidden",
        "This key may not create buckets.",
    ),
    "reader makes a bucket": (
        CreateBucket(name="music", actor="reader"),
        "forbidden",
        "This key may not create buckets.",
    ),
    "change another's bucket": (
        UpdateBucket(name="photos", actor="writer", hidden=True),
        "forbidden",
        "This key may not change the bucket 'photos'.",
    ),
    "delete another's bucket": (
        DeleteBucket(name="photos", actor="writer", cascade=True),
        "forbidden",
        "This key may not change the bucket 'photos'.",
    ),
    "delete no bucket": (
        DeleteBucket(name="music", actor=ADMIN),
        "no_such_bucket",
        "There is no bucket 'music'.",
    ),
    "delete a full bucket": (
        DeleteBucket(name="photos", actor=ADMIN),
        "bucket_not_empty",
        "The bucket 'photos' still holds 1 files.",
    ),
    "put into no bucket": (
        put_inline("music", "a", b""),
        "no_such_bucket",
        "There is no bucket 'music'.",
    ),
    "put under a wrong path": (
        put_inline("photos", "a/../b", b""),
        "invalid_command",
        "The path 'a/../b' has a '.' or '..' component.",
    ),
    "anonymous writes": (
        put_inline("photos", "b", b"", actor=""),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "reader writes": (
        put_inline("photos", "b", b"", actor="reader"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "unknown key writes": (
        put_inline("photos", "b", b"", actor="revoked"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "reader deletes": (
        DeleteFile(bucket="photos", path="a.txt", actor="reader"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "reader stages": (
        stage("photos", 1, 0, [1], actor="reader"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "create what is there": (
        put_inline("photos", "a.txt", preconditions=Preconditions(if_none_match=("*",))),
        "precondition_failed",
        "If-None-Match doesn't hold for 'a.txt' in bucket 'photos'.",
    ),
    "replace another state": (
        put_inline("photos", "a.txt", preconditions=Preconditions(if_match=("e-other",))),
        "precondition_failed",
        "If-Match doesn't hold for 'a.txt' in bucket 'photos'.",
    ),
    "replace nothing": (
        put_inline("photos", "b", preconditions=Preconditions(if_match=("*",))),
        "precondition_failed",
        "If-Match doesn't hold for 'b' in bucket 'photos'.",
    ),
    "delete another state": (
        DeleteFile(
            bucket="photos", path="a.txt", actor=ADMIN, preconditions=Preconditions(if_match=("x",))
        ),
        "precondition_failed",
        "If-Match doesn't hold for 'a.txt' in bucket 'photos'.",
    ),
    "delete nothing": (
        DeleteFile(bucket="photos", path="b", actor=ADMIN),
        "no_such_file",
        "There is no file 'b' in bucket 'photos'.",
    ),
    "no contents": (
        put_inline("photos", "b", inline=None),
        "invalid_command",
        "Exactly one of inline, chunks and upload_id holds the contents.",
    ),
    "contents twice": (
        put_inline("photos", "b", b"x", chunks=chunk_list(1)),
        "invalid_command",
        "Exactly one of inline, chunks and upload_id holds the contents.",
    ),
    "large inline": (
        put_inline("photos", "b", bytes(4097)),
        "invalid_command",
        "Inline contents of 4097 bytes; at most 4,096 may be.",
    ),
    "wrong size": (
        put_chunks("photos", "b", 1, 2, size_bytes=1999),
        "invalid_command",
        "The contents have 2000 bytes, the command says 1999.",
    ),
    "partial reference": (
        put_chunks("photos", "b", 1, chunks=bytes(37)),
        "invalid_command",
        "The chunk list has 37 bytes, which is not 1 to 1024 references.",
    ),
    "too much metadata": (
        put_inline("photos", "b", user_metadata={"k": "é" * 4096}),
        "invalid_command",
        "User metadata and tags exceed 8192 bytes.",
    ),
    "over quota": (
        put_chunks("photos", "b", 1, 2, 3, 4, 5),
        "quota_exceeded",
        "The bucket 'photos' would hold 5,005 bytes, its quota is 5,000.",
    ),
    "no upload": (
        put_inline("photos", "b", inline=None, upload_id=bytes(16)),
        "no_such_upload",
        "No upload for 'b' has this id.",
    ),
    "stage in no upload": (
        stage("photos", 1, 1, [1]),
        "no_such_upload",
        "There is no upload 00000000000000000000000000000001.",
    ),
    "abort no upload": (
        AbortUpload(upload_id=bytes(16), actor=ADMIN),
        "no_such_upload",
        "There is no upload 00000000000000000000000000000000.",
    ),
    "key by a writer": (
        CreateKey(key_id="k", secret_hash=bytes(32), actor="writer", role="admin"),
        "forbidden",
        "Only an admin key may change keys.",
    ),
    "key with a reserved id": (
        CreateKey(key_id=SYSTEM, secret_hash=bytes(32), actor=ADMIN),
        "invalid_command",
        "A key 'system' with the role 'writer' can't be.",
    ),
    "key with no role": (
        CreateKey(key_id="k", secret_hash=bytes(32), actor=ADMIN, role="god"),
        "invalid_command",
        "A key 'k' with the role 'god' can't be.",
    ),
    "key id taken": (
        CreateKey(key_id="writer", secret_hash=b"x" * 32, actor=ADMIN),
        "invalid_command",
        "The key id 'writer' is taken already.",
    ),
    "revoke no key": (
        RevokeKey(key_id="k", actor=ADMIN),
        "no_such_key",
        "There is no key 'k'.",
    ),
    "revoke by a writer": (
        RevokeKey(key_id="reader", actor="writer"),
        "forbidden",
        "Only an admin key may change keys.",
    ),
    "token by a writer": (
        CreateJoinToken(token_id="t", secret_hash=bytes(32), actor="writer"),
        "forbidden",
        "Only an admin key may create join tokens.",
    ),
    "admit without token": (
        AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)),
        "token_invalid",
        "The join token is not one of this cluster.",
    ),
    "member of no weight": (
        UpdateMember(member=make_member(1, weight=0), boot_counter=1),
        "invalid_command",
        "The member has the weight 0, not 1 to 1,000,000.",
    ),
    "update no member": (
        UpdateMember(member=make_member(2), boot_counter=1),
        "no_such_member",
        "There is no member '00000000-0000-4000-8000-000000000002'.",
    ),
    "stage of no member": (
        SetMemberStage(node_id="n", stage="voter", expected_stage="learner"),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "no stage": (
        SetMemberStage(node_id=make_member(1).node_id, stage="king", expected_stage="voter"),
        "invalid_command",
        "'king' is no stage.",
    ),
    "another stage": (
        SetMemberStage(node_id=make_member(1).node_id, stage="voter", expected_stage="learner"),
        "stale_expectation",
        "Node 00000000-0000-4000-8000-000000000001 is voter, not learner.",
    ),
    "another epoch": (
        ChangeRing(expected_epoch=2, node_ids=(make_member(1).node_id,)),
        "stale_expectation",
        "The ring is in epoch 1, not 2.",
    ),
    "ring with a stranger": (
        ChangeRing(expected_epoch=1, node_ids=("n",)),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "ring with a twin": (
        ChangeRing(expected_epoch=1, node_ids=(make_member(1).node_id,) * 2),
        "invalid_command",
        "A node is named twice.",
    ),
    "bootstrap again": (
        BootstrapCluster(
            cluster_id="other",
            member=make_member(2),
            replicas=3,
            admin_key_id="k",
            admin_secret_hash=bytes(32),
        ),
        "already_bootstrapped",
        "This is cluster c1d0 already.",
    ),
    "another generation": (
        AdvanceGeneration(expected=1),
        "stale_expectation",
        "The generation is 0, not 1.",
    ),
    "version back": (
        SetClusterVersion(version=0),
        "stale_expectation",
        "The cluster version is 1 already.",
    ),
}


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
    assert shown | {"idempotency_keys_full", "too_many_keys"} == FAILURE_CODES


def _failure(result: object) -> Failure:
    assert isinstance(result, Failure), result
    return result
