"""Commands and results on the wire: what is decoded is what was encoded, and nothing else is."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from metadata_raft.chunk_references import pack, unpack, unpack_checked
from metadata_raft.commands import (
    FAILURE_CODES,
    AdvanceGeneration,
    Command,
    CreateKey,
    Entry,
    Failure,
    IdempotencyKey,
    Preconditions,
    Proposal,
    ReclaimStep,
    UpdateBucket,
    decode_command,
    decode_entry,
    decode_result,
    encode,
)
from metadata_raft.request_ids import new_request_id
from metadata_raft.state_machine import _APPLY
from tests.metadata_raft.replica import chunk_id, put_inline


def test_every_command_is_applied() -> None:
    """The state machine knows each command of the union, and no other."""
    assert set(_APPLY) == set(get_args(Command))


def test_an_entry_survives_encoding() -> None:
    """Envelope, idempotency key and command come back as they were."""
    command = put_inline(
        "bucket",
        "a/ü",
        b"content",
        user_metadata={"k": "v"},
        tags=("x", "y"),
        preconditions=Preconditions(if_none_match=("*",)),
    )
    proposal = Proposal(
        request_id=bytes(16),
        not_after_ms=5,
        command=msgspec.Raw(encode(command)),
        idempotency=IdempotencyKey(scope="s", key="k", fingerprint=b"f"),
    )
    decoded = decode_entry(encode(Entry(version=1, time_ms=7, proposals=[proposal])))
    assert (decoded.version, decoded.time_ms) == (1, 7)
    assert decode_command(decoded.proposals[0].command) == command
    assert decoded.proposals[0].idempotency == proposal.idempotency


def test_the_encoding_of_a_command_is_stable() -> None:
    """The stored form is a map tagged by the command's name; defaults are left out."""
    golden = b"\x82\xa4type\xb1AdvanceGeneration\xa8expected\x07"
    assert encode(AdvanceGeneration(expected=7)) == golden
    assert decode_command(golden) == AdvanceGeneration(expected=7)


def test_unset_and_null_differ() -> None:
    """Leaving a quota as it is and taking it away are two commands."""
    leave = decode_command(encode(UpdateBucket(name="abc", actor="a")))
    remove = decode_command(encode(UpdateBucket(name="abc", actor="a", quota_bytes=None)))
    assert isinstance(leave, UpdateBucket)
    assert isinstance(remove, UpdateBucket)
    assert leave.quota_bytes is msgspec.UNSET
    assert remove.quota_bytes is None


@pytest.mark.parametrize(
    "command",
    [
        put_inline("bucket", "a", size_bytes=-1),
        put_inline("bucket", "a", size_bytes=2**53 + 1),
        put_inline("bucket", "a", etag="x" * 257),
        put_inline("bucket", "a", content_checksum=b"short"),
        ReclaimStep(row_limit=1001),
        ReclaimStep(row_limit=0),
        CreateKey(key_id="", secret_hash=bytes(32), actor="a"),
        CreateKey(key_id="k", secret_hash=bytes(31), actor="a"),
        AdvanceGeneration(expected=2**64 - 1),
    ],
)
def test_what_a_command_may_hold_is_bounded(command: Command) -> None:
    """Numbers beyond 2**53, wrong hashes and endless names are refused before application."""
    with pytest.raises(msgspec.ValidationError):
        decode_command(encode(command))


def test_a_failure_survives_encoding() -> None:
    """Code, detail and whether to retry reach the gateway."""
    failure = Failure(code="restage", detail="x", retryable=True)
    assert failure.code in FAILURE_CODES
    assert decode_result(encode(failure)) == failure


def test_request_ids_are_unique_and_neighbours_in_time() -> None:
    """16 bytes; those made together begin alike, and no two are the same."""
    ids = [new_request_id() for _ in range(1000)]
    assert {len(request_id) for request_id in ids} == {16}
    assert len(set(ids)) == 1000
    assert [request_id[:6] for request_id in ids] == sorted(request_id[:6] for request_id in ids)
    assert len({request_id[:4] for request_id in ids}) <= 2


def test_chunk_references_are_36_bytes() -> None:
    """32 bytes of id, then the length as little-endian uint32."""
    packed = pack([(chunk_id(1), 1), (chunk_id(2), 8 * 1024 * 1024)])
    assert packed == chunk_id(1) + b"\x01\0\0\0" + chunk_id(2) + b"\0\0\x80\0"
    assert unpack(packed) == unpack_checked(packed) == [(chunk_id(1), 1), (chunk_id(2), 8 << 20)]


@pytest.mark.parametrize(
    "chunks",
    [
        b"",
        bytes(35),
        bytes(37),
        pack([(chunk_id(1), 1)] * 1025),
        pack([(chunk_id(1), 0)]),
        pack([(chunk_id(1), 8 * 1024 * 1024 + 1)]),
    ],
)
def test_a_segment_holds_1_to_1024_sound_references(chunks: bytes) -> None:
    """Partial references, empty and oversized lists, and impossible lengths are told in words."""
    assert isinstance(unpack_checked(chunks), str)
