"""Each request takes effect once, entries are replayed safely, and time only goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from metadata_raft.commands import (
    ENTRY_VERSION,
    AdvanceGeneration,
    DeleteFile,
    Done,
    Entry,
    Failure,
    FilePut,
    IdempotencyKey,
    SetClusterVersion,
    encode,
)
from metadata_raft.state_errors import UnknownVersionError
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    propose,
    put_inline,
    tables_of,
)

FAR_FUTURE = msgspec.msgpack.encode([ENTRY_VERSION, 2**63, []])


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


def test_a_repeated_request_gets_its_first_answer(replica: Replica) -> None:
    """The second copy changes nothing, in the same entry, a later one, and after a restart."""
    proposal = replica.propose(put_inline("default", "a", b"one"))
    first, second = replica.apply([proposal, proposal])
    assert isinstance(first, FilePut)
    assert second == first
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    replica.reopen()
    assert replica.apply([proposal]) == [first]
    assert replica.rows("SELECT * FROM files") == []


def test_a_repeated_refusal_stays_a_refusal(replica: Replica) -> None:
    """A request that was told no is not carried out later: its caller has acted on the no."""
    proposal = replica.propose(DeleteFile(bucket="default", path="a", actor=ADMIN))
    first = replica.apply([proposal])
    replica.do(put_inline("default", "a"))
    assert replica.apply([proposal]) == first
    assert replica.rows("SELECT path FROM files") == [("a",)]


def test_a_request_is_carried_out_before_its_time_or_never(replica: Replica) -> None:
    """A copy within `not_after_ms` finds the result; one after it is refused, and never applied."""
    proposal = replica.propose(put_inline("default", "a"))
    first = replica.apply([proposal])
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    replica.time_ms = proposal.not_after_ms
    replica.apply([])
    assert replica.apply([proposal]) == first
    replica.time_ms += 1
    for _ in range(3):
        replica.apply([])
        (late,) = replica.apply([proposal])
        assert isinstance(late, Failure)
        assert late.code == "request_expired"
    assert replica.rows("SELECT * FROM files") == []


def test_a_longer_repetition_keeps_the_result_longer(replica: Replica) -> None:
    """Each copy finds the result for as long as that copy may come, in one entry and later."""
    first = replica.propose(put_inline("default", "a"))
    second = msgspec.structs.replace(first, not_after_ms=first.not_after_ms + 1000)
    third = msgspec.structs.replace(first, not_after_ms=first.not_after_ms + 2000)
    answer, again = replica.apply([first, second])
    assert again == answer
    replica.time_ms = first.not_after_ms
    assert replica.apply([third, second, first]) == [answer] * 3
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    replica.time_ms = third.not_after_ms
    replica.apply([])
    assert replica.apply([third]) == [answer]
    assert replica.rows("SELECT * FROM files") == []


def test_results_are_forgotten_when_their_time_is_over(replica: Replica) -> None:
    """The table doesn't grow for ever; forgetting takes bounded steps, entry by entry."""
    replica.apply([replica.propose(put_inline("default", f"{n}")) for n in range(200)])
    replica.time_ms += 10_001
    sizes = []
    for _ in range(20):
        before = replica.rows("SELECT count(*) FROM request_results")[0][0]
        replica.apply([])
        sizes.append(before - replica.rows("SELECT count(*) FROM request_results")[0][0])
    assert max(sizes) == 16
    assert sum(sizes) == 202  # the bootstrap's too


def test_an_idempotency_key_is_good_for_a_day(replica: Replica) -> None:
    """Another request id under the same key gets the first result, for 24 hours of state time."""
    key = IdempotencyKey(scope="s", key="k", fingerprint=b"f")
    first = replica.do(put_inline("default", "a"), idempotency=key)
    replica.do(DeleteFile(bucket="default", path="a", actor=ADMIN))
    replica.time_ms += 24 * 3_600_000
    replica.apply([])
    assert replica.do(put_inline("default", "a"), idempotency=key) == first
    assert replica.rows("SELECT * FROM files") == []
    replica.time_ms += 1
    replica.apply([])
    again = replica.do(put_inline("default", "a"), idempotency=key)
    assert isinstance(again, FilePut)
    assert again != first
    assert replica.rows("SELECT idempotency_count FROM cluster") == [(1,)]


def test_keys_of_different_scopes_are_different(replica: Replica) -> None:
    """A scope is a principal and a bucket; nobody sees another's results."""
    results = [
        replica.do(
            put_inline("default", scope),
            idempotency=IdempotencyKey(scope=scope, key="k", fingerprint=scope.encode()),
        )
        for scope in "ab"
    ]
    assert all(isinstance(result, FilePut) for result in results)
    assert results[0] != results[1]


def test_a_refused_request_does_not_use_up_its_key(replica: Replica) -> None:
    """A refusal changed nothing, so the same key may be tried again, and then counts."""
    key = IdempotencyKey(scope="s", key="k", fingerprint=b"f")
    assert isinstance(replica.do(put_inline("nobucket", "a"), idempotency=key), Failure)
    assert isinstance(replica.do(put_inline("default", "a"), idempotency=key), FilePut)


def test_replayed_entries_are_skipped(replica: Replica) -> None:
    """An index at or below the applied one gives no answers and has no effects."""
    replica.do(AdvanceGeneration(expected=0))
    before = tables_of(replica.path)
    for index, entry in enumerate(replica.log, start=1):
        assert replica.machine.apply(index, 1, entry) == []
    replica.machine.flush()
    assert tables_of(replica.path) == before


def test_empty_and_unreadable_entries_move_the_index(replica: Replica) -> None:
    """No-ops of the library, and bytes no replica can read, are passed alike by all."""
    index = replica.machine.applied.index
    for offset, entry in enumerate(
        [b"", b"\xc1", b"\x93\x01\x05\xa1x", b"\x90", FAR_FUTURE], start=1
    ):
        assert replica.machine.apply(index + offset, 3, entry) == []
    replica.machine.flush()
    assert (replica.machine.applied.index, replica.machine.applied.term) == (index + 5, 3)


@pytest.mark.parametrize(
    "entry",
    [
        encode(Entry(version=ENTRY_VERSION + 1, time_ms=1, proposals=[])),
        msgspec.msgpack.encode([ENTRY_VERSION + 1, {"a": "shape of the future"}]),
    ],
)
def test_an_entry_of_newer_software_ends_the_process(replica: Replica, entry: bytes) -> None:
    """Skipping it would make this replica differ; whatever its shape, its version is seen."""
    with pytest.raises(UnknownVersionError, match="version 2"):
        replica.machine.apply(100, 1, entry)


def test_a_newer_cluster_version_ends_the_process(replica: Replica) -> None:
    """Only nodes that know the version go on; the present one may be set again."""
    assert replica.do(SetClusterVersion(version=2)) == Done()
    with pytest.raises(UnknownVersionError, match="version 3"):
        replica.do(SetClusterVersion(version=3))


def test_state_time_never_goes_back(replica: Replica) -> None:
    """An earlier stamp counts as the latest one (rule M5)."""
    latest = replica.time_ms
    replica.time_ms -= 5000
    result = replica.apply([propose(put_inline("default", "a"), 77, not_after_ms=latest)])[0]
    assert isinstance(result, FilePut)
    assert result.modified_ms == latest == replica.machine.applied.time_ms


def test_applied_is_published_with_the_commit(replica: Replica) -> None:
    """Before the flush readers see, and are told of, nothing (rule M3)."""
    before = replica.machine.applied
    entry = replica.entry([replica.propose(AdvanceGeneration(expected=0))])
    assert len(replica.machine.apply(before.index + 1, 2, entry)) == 1
    assert replica.machine.applied is before
    assert replica.rows("SELECT generation FROM cluster") == [(0,)]
    replica.machine.flush()
    after = replica.machine.applied
    assert (after.index, after.term, after.generation) == (before.index + 1, 2, 1)
    assert replica.rows("SELECT generation, applied_index FROM cluster") == [(1, after.index)]
