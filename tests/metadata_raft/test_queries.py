"""What readers see: records, pages in key order, snapshots that hold still and don't last."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_raft.commands import (
    ChangeRing,
    CreateBucket,
    CreateKey,
    DeleteBucket,
    DeleteFile,
    FilePut,
    UpdateMember,
    encode,
)
from metadata_raft.listing import after_prefix, common_prefix
from metadata_raft.queries import SNAPSHOT_SECONDS_MAX
from metadata_raft.readers import CONNECTIONS_MAX, ReaderPool
from metadata_raft.records import Listing, UploadRecord
from metadata_raft.state_errors import ReadersBusyError, SnapshotExpiredError, StateCorruptError
from tests.fakes.metadata import FIRST_TIME_MS, make_member
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    chunk_id,
    chunk_list,
    put_chunks,
    put_inline,
    stage,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


# --- records -----------------------------------------------------------------------------------


def test_a_file_is_found_by_path_and_by_id(replica: Replica) -> None:
    """Everything that was put comes back; so do the times and the owner."""
    put = put_inline(
        "default",
        "a/ü",
        b"content",
        content_type="text/plain",
        user_metadata={"k": "v"},
        tags=("x",),
        chunking=7,
        content_checksum=bytes(32),
    )
    result = replica.do(put)
    assert isinstance(result, FilePut)
    with replica.snapshot() as snapshot:
        file = snapshot.file("default", "a/ü")
        assert file is not None
        assert snapshot.file_by_id(result.file_id) == file
        assert snapshot.file("default", "a") is None
        assert snapshot.file("nobucket", "a/ü") is None
        assert snapshot.file_by_id(99) is None
    assert (file.bucket, file.path, file.version_id) == ("default", "a/ü", result.version_id)
    assert (file.user_metadata, file.tags, file.inline) == ({"k": "v"}, ("x",), b"content")
    assert (file.content_type, file.chunking, file.content_checksum) == (
        "text/plain",
        7,
        bytes(32),
    )
    assert (file.owner, file.created_ms, file.modified_ms) == (ADMIN, FIRST_TIME_MS, FIRST_TIME_MS)


def test_a_new_version_changes_when_the_file_was_modified(replica: Replica) -> None:
    """Created stays, modified follows; contents in segments leave nothing inline."""
    replica.do(put_inline("default", "a", b"x"))
    replica.time_ms += 5
    replica.do(put_chunks("default", "a", 1))
    with replica.snapshot() as snapshot:
        file = snapshot.file("default", "a")
    assert file is not None
    assert (file.created_ms, file.modified_ms) == (FIRST_TIME_MS, FIRST_TIME_MS + 5)
    assert (file.inline, file.user_metadata, file.tags) == (None, {}, ())


def test_files_of_a_removed_bucket_are_gone_at_once(replica: Replica) -> None:
    """Rows that still wait for the queue are seen by nobody."""
    result = replica.do(put_inline("default", "a"))
    assert isinstance(result, FilePut)
    replica.do(DeleteBucket(name="default", actor=ADMIN, cascade=True))
    with replica.snapshot() as snapshot:
        assert snapshot.file("default", "a") is None
        assert snapshot.file_by_id(result.file_id) is None
        assert snapshot.files("default") == Listing(files=(), prefixes=(), next_cursor=None)
        assert snapshot.bucket("default") is None
        assert snapshot.reclaim_pending()
    replica.drain()
    with replica.snapshot() as snapshot:
        assert not snapshot.reclaim_pending()


def test_buckets_come_in_pages_by_name(replica: Replica) -> None:
    """`after` is exclusive; hidden ones are told, not left out: who may see them decides above."""
    for name in ("zoo", "music", "photos"):
        replica.do(CreateBucket(name=name, actor=ADMIN, hidden=name == "zoo", quota_bytes=9))
    with replica.snapshot() as snapshot:
        names = [bucket.name for bucket in snapshot.buckets()]
        assert names == ["default", "music", "photos", "zoo"]
        assert [bucket.name for bucket in snapshot.buckets("music", 1)] == ["photos"]
        bucket = snapshot.bucket("zoo")
    assert bucket is not None
    assert (bucket.hidden, bucket.quota_bytes, bucket.owner) == (True, 9, ADMIN)


def test_segments_are_found_by_offset(replica: Replica) -> None:
    """The page starts with the segment that holds the offset; beyond the end there is none."""
    for ordinal in range(5):
        replica.do(stage("default", 1, ordinal, [2 * ordinal, 2 * ordinal + 1]))
    with replica.snapshot() as snapshot:
        assert snapshot.upload((1).to_bytes(16, "big")) == UploadRecord(
            upload_id=(1).to_bytes(16, "big"),
            bucket="default",
            actor=ADMIN,
            segment_count=5,
            size_bytes=10_000,
            touched_ms=FIRST_TIME_MS,
        )
        assert snapshot.upload(bytes(16)) is None
    upload_id = (1).to_bytes(16, "big")
    result = replica.do(
        put_inline("default", "a", inline=None, upload_id=upload_id, size_bytes=10_000)
    )
    assert isinstance(result, FilePut)
    with replica.snapshot() as snapshot:

        def ordinals(offset: int, limit: int = 16) -> list[int]:
            return [s.ordinal for s in snapshot.segments(result.version_id, offset, limit)]

        assert ordinals(0) == [0, 1, 2, 3, 4]
        assert ordinals(1999, 1) == [0]
        assert ordinals(2000, 2) == [1, 2]
        assert ordinals(5999) == [2, 3, 4]
        assert ordinals(9999) == [4]
        assert ordinals(10_000) == []
        assert snapshot.segments(999) == []
        assert snapshot.segments(result.version_id, 4000, 1)[0].chunks == chunk_list(4, 5)


def test_keys_members_and_cluster(replica: Replica) -> None:
    """Identity records come back as they were stored, sorted by id."""
    replica.do(CreateKey(key_id="w", secret_hash=b"h" * 32, actor=ADMIN, description="for tests"))
    with replica.snapshot() as snapshot:
        key = snapshot.key("w")
        assert key is not None
        assert (key.secret_hash, key.role, key.description) == (b"h" * 32, "writer", "for tests")
        assert snapshot.key("x") is None
        assert [key.key_id for key in snapshot.keys()] == [ADMIN, "w"]
        cluster = snapshot.cluster()
        assert (cluster.cluster_id, cluster.epoch, cluster.replicas) == ("c1d0", 1, 3)
        assert snapshot.applied_index() == len(replica.log)


def test_epochs_keep_their_placement_and_follow_addresses(replica: Replica) -> None:
    """A former epoch's weight and zone stay as they were; its nodes are found where they are."""
    moved = make_member(1, weight=7, zone="b")
    moved = type(moved)(
        node_id=moved.node_id,
        peer_address="10.0.0.1:1",
        raft_address="10.0.0.1:2",
        client_url="http://10.0.0.1:3",
        zone="b",
        weight=7,
    )
    replica.do(UpdateMember(member=moved, boot_counter=1))
    with replica.snapshot() as snapshot:
        (before,) = snapshot.membership(None).members
        assert (before.weight, before.zone, before.peer_address) == (100, "", "10.0.0.1:1")
    replica.do(ChangeRing(expected_epoch=1, node_ids=(moved.node_id,), replicas=2))
    with replica.snapshot() as snapshot:
        assert [membership.epoch for membership in snapshot.epochs()] == [2, 1]
        assert snapshot.membership(1).members[0].weight == 100
        assert snapshot.membership(None).members == (moved,)
        assert (snapshot.membership(None).epoch, snapshot.membership(None).replicas) == (2, 2)
        assert snapshot.membership(9).members == ()
        assert snapshot.members()[0].in_ring


def test_referenced_chunks_are_asked_for_in_any_number(replica: Replica) -> None:
    """Sets larger than a statement are split; pages go through all ids in order."""
    replica.do(put_chunks("default", "a", *range(300)))
    ids = [chunk_id(number) for number in range(300)]
    unknown = [chunk_id(number) for number in range(300, 500)]
    with replica.snapshot() as snapshot:
        assert snapshot.referenced(ids + unknown) == set(ids)
        assert snapshot.referenced(unknown[:1]) == snapshot.referenced([]) == set()
        pages: list[bytes] = []
        while page := snapshot.chunk_page(pages[-1] if pages else b"", 77):
            pages += page
        assert pages == sorted(ids)


def test_a_result_is_found_by_its_request(replica: Replica) -> None:
    """What a future missed can be looked up under its request id."""
    proposal = replica.propose(put_inline("default", "a"))
    (result,) = replica.apply([proposal])
    with replica.snapshot() as snapshot:
        assert snapshot.result(proposal.request_id) == encode(result)
        assert snapshot.result(b"?" * 16) is None


# --- listings ----------------------------------------------------------------------------------

TREE = ["a", "a-b", "a.txt", "a/1", "a/2", "a/b/3", "b", "c/1", "c0", "d/é/x", "é", "😀/1"]


def fill(replica: Replica, paths: list[str]) -> None:
    replica.apply([replica.propose(put_inline("default", path, b"x")) for path in paths])


def pages(
    replica: Replica, *, prefix: str = "", delimiter: str = "", limit: int = 1000
) -> tuple[list[str], list[str], int]:
    """All files and prefixes of a listing, and on how many pages they came."""
    files: list[str] = []
    prefixes: list[str] = []
    cursor, count = None, 0
    while True:
        with replica.snapshot() as snapshot:
            page = snapshot.files("default", prefix, delimiter, cursor, limit)
        assert len(page.files) + len(page.prefixes) <= limit
        files += [file.path for file in page.files]
        prefixes += page.prefixes
        count += 1
        if page.next_cursor is None:
            return files, prefixes, count
        assert len(page.files) + len(page.prefixes) == limit
        cursor = page.next_cursor


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_a_listing_is_in_byte_order_whatever_the_pages(replica: Replica, limit: int) -> None:
    """Keys come in the order of their UTF-8 bytes, each once, without inline contents."""
    fill(replica, TREE)
    files, prefixes, count = pages(replica, limit=limit)
    assert files == sorted(TREE, key=str.encode)
    assert prefixes == []
    assert count == -(-len(TREE) // limit)
    with replica.snapshot() as snapshot:
        assert {file.inline for file in snapshot.files("default").files} == {None}


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_a_delimiter_folds_what_lies_below(replica: Replica, limit: int) -> None:
    """Each common prefix comes once, on one page, ending in the delimiter."""
    fill(replica, TREE)
    files, prefixes, _ = pages(replica, delimiter="/", limit=limit)
    assert files == ["a", "a-b", "a.txt", "b", "c0", "é"]
    assert prefixes == ["a/", "c/", "d/", "😀/"]
    files, prefixes, _ = pages(replica, prefix="a/", delimiter="/", limit=limit)
    assert (files, prefixes) == (["a/1", "a/2"], ["a/b/"])
    files, prefixes, _ = pages(replica, prefix="a", delimiter="/", limit=limit)
    assert (files, prefixes) == (["a", "a-b", "a.txt"], ["a/"])
    assert pages(replica, prefix="x", delimiter="/", limit=limit) == ([], [], 1)


def test_a_cursor_outlives_what_it_names(replica: Replica) -> None:
    """A page goes on behind the last key, also when that has been deleted meanwhile."""
    fill(replica, TREE)
    replica.do(DeleteFile(bucket="default", path="a-b", actor=ADMIN))
    with replica.snapshot() as snapshot:
        page = snapshot.files("default", "", "/", "a-b", 2)
        assert [file.path for file in page.files] == ["a.txt"]
        assert (page.prefixes, page.next_cursor) == (("a/",), "a/")


@given(
    paths=st.sets(st.text(alphabet="ab-/é\U0010ffff", min_size=1, max_size=5), max_size=12),
    prefix=st.text(alphabet="ab-/\U0010ffff", max_size=2),
    delimiter=st.sampled_from(["", "/", "-", "a", "b-"]),
    limit=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_listing_equals_its_definition(
    paths: set[str], prefix: str, delimiter: str, limit: int
) -> None:
    """For any keys: those below the prefix, folded at the first delimiter, in order, each once."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE files (bucket_id, path, PRIMARY KEY (bucket_id, path))")
    connection.executemany("INSERT INTO files VALUES (1, ?)", [(path,) for path in paths])
    expected: list[str] = []
    for path in sorted(paths, key=str.encode):
        if path.startswith(prefix):
            found = path.find(delimiter, len(prefix)) if delimiter else -1
            key = path if found < 0 else path[: found + len(delimiter)]
            if key not in expected[-1:]:
                expected.append(key)
    from metadata_raft.listing import list_page  # noqa: PLC0415

    given_keys: list[str] = []
    cursor = None
    for _ in range(len(paths) + 1):
        rows, prefixes, cursor = list_page(
            connection.execute,
            "SELECT path FROM files WHERE bucket_id = ?",
            bucket_id=1,
            prefix=prefix,
            delimiter=delimiter,
            cursor=cursor,
            limit=limit,
        )
        given_keys += sorted([*(row[0] for row in rows), *prefixes], key=str.encode)
        if cursor is None:
            break
    connection.close()
    assert given_keys == expected


@given(prefix=st.text(min_size=1, max_size=4), tail=st.text(max_size=3), other=st.text(max_size=5))
def test_after_prefix_separates(prefix: str, tail: str, other: str) -> None:
    """Everything with the prefix is below it; everything else above the prefix is at or above."""
    above = after_prefix(prefix)
    if above is None:
        assert set(prefix) == {"\U0010ffff"}
    else:
        assert prefix + tail < above
        assert above.encode() > (prefix + tail).encode()
        if other > prefix and not other.startswith(prefix):
            assert other >= above
    assert common_prefix(prefix + "/" + tail, prefix, "/") == prefix + "/"


def test_a_folded_listing_seeks_over_what_it_folds(replica: Replica) -> None:
    """The steps of SQLite don't grow with the number of files below a common prefix."""

    def steps() -> int:
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        pool = ReaderPool(replica.path)
        with pool.snapshot() as snapshot:
            snapshot.files("default", "", "/")
        reader = pool._idle[0].connection
        reader.set_progress_handler(step, 1)
        with pool.snapshot() as snapshot:
            page = snapshot.files("default", "", "/")
        pool.close()
        assert page.prefixes == ("a/", "b/")
        return count

    fill(replica, ["a/0", "b/0"])
    few = steps()
    fill(replica, [f"{folder}/{number}" for folder in "ab" for number in range(1, 300)])
    assert steps() < few + 50


# --- snapshots ---------------------------------------------------------------------------------


def test_a_snapshot_holds_still(replica: Replica) -> None:
    """Commits during a snapshot are seen by the next one."""
    replica.do(put_inline("default", "a", b"1"))
    with replica.snapshot() as snapshot:
        before = snapshot.file("default", "a")
        replica.do(put_inline("default", "a", b"2"))
        assert snapshot.file("default", "a") == before
    with replica.snapshot() as snapshot:
        after = snapshot.file("default", "a")
    assert after is not None
    assert after.inline == b"2"


def test_a_snapshot_shows_all_that_was_committed_before_its_first_query(
    replica: Replica,
) -> None:
    """After a barrier a reader must not see less (M3)."""
    with replica.snapshot():
        pass
    replica.do(put_inline("default", "a"))
    with replica.snapshot() as snapshot:
        assert snapshot.file("default", "a") is not None


def test_snapshots_work_in_threads(replica: Replica) -> None:
    """Connections wander between threads; two threads never share one."""
    replica.do(put_inline("default", "a"))
    seen: list[bool] = []

    def read() -> None:
        for _ in range(50):
            with replica.snapshot() as snapshot:
                seen.append(snapshot.file("default", "a") is not None)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 200


def test_readers_are_bounded(replica: Replica) -> None:
    """One snapshot too many is refused at once, and connections come back."""
    pool = ReaderPool(replica.path)
    contexts = [pool.snapshot() for _ in range(CONNECTIONS_MAX)]
    for context in contexts:
        context.__enter__()
    with pytest.raises(ReadersBusyError), pool.snapshot():
        pass
    for context in contexts:
        context.__exit__(None, None, None)
    with pool.snapshot() as snapshot:
        assert snapshot.bucket("default") is not None
    pool.close()
    with pytest.raises(ReadersBusyError, match="closed"), pool.snapshot():
        pass


def test_a_snapshot_expires(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its second it answers no more, and a statement that runs into it is interrupted."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pool = ReaderPool(replica.path)
    with pool.snapshot() as snapshot:
        snapshot.bucket("default")
        now[0] += SNAPSHOT_SECONDS_MAX + 0.1
        with pytest.raises(SnapshotExpiredError):
            snapshot.bucket("default")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    monkeypatch.setattr("time.monotonic", lambda: now.append(now[-1] + 0.01) or now[-1])
    with pytest.raises(SnapshotExpiredError), pool.snapshot() as snapshot:
        snapshot._execute(endless).fetchone()
    monkeypatch.undo()
    with pool.snapshot() as snapshot:
        assert snapshot.bucket("default") is not None
    pool.close()


def test_a_snapshot_can_only_read(replica: Replica) -> None:
    """A statement that writes fails, and is reported as what it is."""
    with pytest.raises(StateCorruptError), replica.snapshot() as snapshot:
        snapshot._execute("DELETE FROM files")
    with pytest.raises(StateCorruptError), ReaderPool(replica.path + ".no").snapshot():
        pass
