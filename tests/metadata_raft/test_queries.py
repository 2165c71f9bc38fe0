"""What readers see: records that say what was stored, by every way to ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metadata_raft.commands import (
    ChangeRing,
    CreateBucket,
    CreateJoinToken,
    CreateKey,
    DeleteBucket,
    FilePut,
    UpdateMember,
    encode,
)
from metadata_raft.records import Listing, UploadRecord
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
        keys = snapshot.keys()
        assert [key.key_id for key in keys] == [ADMIN, "w"]
        cluster = snapshot.cluster()
        assert (cluster.cluster_id, cluster.epoch, cluster.replicas) == ("c1d0", 1, 3)
        assert snapshot.applied_index() == len(replica.log)


def test_a_join_token_is_known_by_its_hash(replica: Replica) -> None:
    """Who is asked to admit a node can check what it brings."""
    replica.do(CreateJoinToken(token_id="t", secret_hash=b"h" * 32, actor=ADMIN))
    with replica.snapshot() as snapshot:
        assert snapshot.join_token_hash("t") == b"h" * 32
        assert snapshot.join_token_hash("u") is None


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
