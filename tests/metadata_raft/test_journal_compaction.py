"""Compaction: never more than the state has made durable, never the tail, always bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metadata_raft.compaction import (
    LEASE_SECONDS_LIMIT,
    LogLease,
    SegmentSummary,
    segments_to_drop,
)
from metadata_raft.journal import JournalSettings
from metadata_raft.storage import Storage
from tests.metadata_raft.journal_world import new_disk, open_journal

SETTINGS = JournalSettings(
    segment_bytes=2048, tail_entries=10, tail_bytes=100_000, reserve_bytes=0, lease_bytes=50_000
)


def filled(settings: JournalSettings = SETTINGS) -> Storage:
    """Entries 1 to 100, three to a segment."""
    storage = open_journal(new_disk(), settings)
    journal = storage.journal
    journal.add(b"\x01", 1, 0)
    journal.setCurrentTerm(1, None)
    for index in range(2, 101):
        journal.add(bytes(600), index, 1)
    journal.flush()
    return storage


def test_nothing_goes_that_is_not_durable_in_the_state() -> None:
    """The entry at the durable index stays, and everything behind it (M4, hazard 5)."""
    for durable in (0, 1, 2, 17, 50):
        journal = filled().journal
        assert journal.compact(durable) <= max(durable, 1)
        assert journal.last_index == 100


def test_a_tail_is_kept() -> None:
    """A follower that lags by less than the tail finds its entries, unless they are too long."""
    assert 85 <= filled().journal.compact(100) <= 91
    small = JournalSettings(segment_bytes=2048, tail_entries=50, tail_bytes=5000, reserve_bytes=0)
    assert filled(small).journal.compact(100) >= 91


def test_a_lease_holds_the_log() -> None:
    """A download under way keeps the log from its index on, while that is not too long (M6)."""
    journal = filled().journal
    assert journal.compact(100, lease_index=100) >= 85
    long = JournalSettings(segment_bytes=2048, tail_entries=10, reserve_bytes=0)
    assert 38 <= filled(long).journal.compact(100, lease_index=40) <= 40
    assert filled().journal.compact(100, lease_index=40) >= 85


def test_compaction_survives_a_restart() -> None:
    """The journal begins at the same entry after a restart, and its size on disk shrank."""
    storage = filled()
    journal = storage.journal
    size = journal.size_bytes
    first = journal.compact(60)
    assert journal.size_bytes < size
    disk = storage.filesystem
    storage.close()
    again = open_journal(disk, SETTINGS).journal  # type: ignore[arg-type] # The fake it was.
    assert again.first_index == first
    assert again.last_index == 100


def test_compaction_by_the_library_s_call() -> None:
    """`deleteEntriesTo` drops whole segments before a position, and never beyond it."""
    journal = filled().journal
    journal.deleteEntriesTo(50)
    assert 45 <= journal.first_index <= 51
    before = journal.first_index
    journal.deleteEntriesTo(0)
    assert journal.first_index == before


@st.composite
def logs(draw: st.DrawFn) -> list[SegmentSummary]:
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    first, summaries = draw(st.integers(1, 100)), []
    for count in sizes:
        summaries.append(SegmentSummary(first, count * draw(st.integers(1, 100))))
        first += count
    return summaries


@given(
    segments=logs(),
    behind=st.integers(0, 60),
    durable=st.integers(0, 800),
    tail_entries=st.integers(0, 300),
    tail_bytes=st.integers(0, 20_000),
    lease=st.none() | st.integers(0, 800),
    lease_bytes=st.integers(0, 20_000),
)
def test_what_goes(
    segments: list[SegmentSummary],
    behind: int,
    durable: int,
    tail_entries: int,
    tail_bytes: int,
    lease: int | None,
    lease_bytes: int,
) -> None:
    """The last segment stays; what goes is durable; the tail and the lease are kept, but only
    within their bytes; and what is kept has one of these reasons."""
    last_index = segments[-1].first_index + behind
    total = sum(segment.size_bytes for segment in segments)
    count = segments_to_drop(
        segments,
        durable_index=durable,
        last_index=last_index,
        tail_entries=tail_entries,
        tail_bytes=tail_bytes,
        lease_index=lease,
        lease_bytes=lease_bytes,
    )
    assert count < len(segments)
    kept = segments[count:]
    if count:
        assert kept[0].first_index <= durable
        assert lease is None or total > lease_bytes or kept[0].first_index <= lease
    if len(kept) > 1:
        size = sum(segment.size_bytes for segment in kept)
        assert (
            kept[1].first_index > durable
            or (lease is not None and total <= lease_bytes and kept[1].first_index > lease)
            or (last_index + 1 - kept[1].first_index < tail_entries and size <= tail_bytes)
        )


def test_leases_end() -> None:
    """A lease ends by its time, and never lasts longer than its bound."""
    lease = LogLease()
    assert lease.index(0.0) is None
    lease.grant(5, 100.0)
    assert lease.index(100.0 + LEASE_SECONDS_LIMIT - 1) == 5
    assert lease.index(100.0 + LEASE_SECONDS_LIMIT) is None
    lease.grant(6, 0.0, seconds=10 * LEASE_SECONDS_LIMIT)
    lease.end_within(30.0, 10.0)
    assert lease.index(39.0) == 6
    lease.end_within(3000.0, 39.0)
    assert lease.index(40.0) is None
