"""Equal logs make equal states (M8), and the states are those of a model in plain dicts.

Two replicas apply the same random log. One commits after every entry; the other in random batches,
and is closed, killed and made to replay at random points in between. Answers and tables must agree
with each other, and with the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    AbortUpload,
    AdmitMember,
    Advanced,
    AdvanceGeneration,
    BucketDone,
    ChangeRing,
    Command,
    CreateBucket,
    CreateJoinToken,
    DeleteBucket,
    DeleteFile,
    Done,
    Failure,
    FileDeleted,
    FilePut,
    ForgetMember,
    Preconditions,
    Proposal,
    Reclaimed,
    ReportSettled,
    Result,
    ResumeCollection,
    RingChanged,
    SetClusterSettings,
    SetMemberIntent,
    SetMemberStage,
    UpdateBucket,
)
from metadata_raft.digests import state_digest
from metadata_raft.queries import Snapshot
from metadata_raft.records import ClusterSettings
from metadata_raft.state_machine import StateMachine
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import (
    ADMIN,
    CHUNK,
    Replica,
    put_chunks,
    put_inline,
    stage,
    tables_of,
)
from tests.metadata_raft.state_model import Model

BUCKETS = st.sampled_from(["default", "photos", "music"])
PATHS = st.sampled_from(["a", "a/b", "a/c", "b", "é/😀"])
NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=4)
CONTENTS = st.sampled_from([b"", b"x", b"hello"])
NODES = st.integers(1, 5)
INTENTS = st.sampled_from(["stay", "drain", "leave", "remove"])
UPLOADS = st.integers(1, 2)
ETAGS = st.sampled_from(["*", "e-", "e-78", "e-1", "e-none"])
PRECONDITIONS = st.one_of(
    st.just(Preconditions()),
    st.builds(
        Preconditions,
        if_match=st.none() | st.tuples(ETAGS),
        if_none_match=st.none() | st.tuples(ETAGS),
    ),
)


def outcome(result: Result) -> str:
    """A result in the model's words."""
    match result:
        case Failure():
            return result.code
        case FilePut():
            return "put" if result.created else "replaced"
        case BucketDone():
            return "created" if result.created else "there"
        case Done():
            return "done"
        case FileDeleted():
            return "deleted"
        case Advanced():
            return "advanced"
        case RingChanged():
            return "ring"
        case Reclaimed():
            return "reclaimed"


class Replicas(RuleBasedStateMachine):
    """Two replicas and the model under the same commands."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="holdfast-replicas-")
        self.steady = Replica(os.path.join(self.directory, "steady.db")).bootstrap()
        self.model = Model()
        self.model.apply(CreateBucket(name="default", actor=ADMIN), 0)
        self.moving_path = os.path.join(self.directory, "moving.db")
        self.moving = StateMachine(self.moving_path)
        self.answers: dict[int, list[tuple[bytes, bytes]]] = {}
        self.sent: list[tuple[Proposal, Result]] = []
        self.waiting: list[tuple[Command, Proposal]] = []
        self.moving_index = 0
        self.crashes = 0
        for number in (2, 3, 4):
            self.admit(number, number, made=True)
            for before, after in (("joining", "learner"), ("learner", "voter")):
                node_id = make_member(number).node_id
                self.gather(SetMemberStage(node_id=node_id, stage=after, expected_stage=before))
        self.end_entry()
        self.change_ring([1, 2, 3, 4], raise_floor=False)

    def teardown(self) -> None:
        self.settle()
        self.compare_with_model()
        self.compare_members_with_model()
        self.moving.close()
        self.steady.close()
        shutil.rmtree(self.directory)

    # Commands gather until an entry is made of them.

    def gather(self, command: Command) -> None:
        self.waiting.append((command, self.steady.propose(command)))

    @rule(bucket=BUCKETS, path=PATHS, content=CONTENTS, conditions=PRECONDITIONS)
    def put_inline(self, bucket: str, path: str, content: bytes, conditions: Preconditions) -> None:
        self.gather(put_inline(bucket, path, content, preconditions=conditions))

    @rule(
        bucket=BUCKETS,
        path=PATHS,
        numbers=NUMBERS,
        conditions=PRECONDITIONS,
        age=st.integers(0, 2),
    )
    def put_chunks(
        self, bucket: str, path: str, numbers: list[int], conditions: Preconditions, age: int
    ) -> None:
        command = put_chunks(
            bucket,
            path,
            *numbers,
            preconditions=conditions,
            generation=max(0, self.model.generation - age),
            oldest_epoch=max(1, self.model.cluster.epoch - age // 2),
        )
        self.gather(command)

    @rule(bucket=BUCKETS, path=PATHS, conditions=PRECONDITIONS)
    def delete_file(self, bucket: str, path: str, conditions: Preconditions) -> None:
        self.gather(DeleteFile(bucket=bucket, path=path, actor=ADMIN, preconditions=conditions))

    @rule(bucket=BUCKETS, upload=UPLOADS, back=st.sampled_from([0, 0, 0, 1, -1]), numbers=NUMBERS)
    def stage(self, bucket: str, upload: int, back: int, numbers: list[int]) -> None:
        known = self.model.uploads.get(upload.to_bytes(16, "big"))
        ordinal = max(0, (len(known.segments) if known else 0) - back)
        command = stage(
            bucket,
            upload,
            ordinal,
            numbers,
            generation=self.model.generation,
            oldest_epoch=self.model.cluster.epoch,
        )
        self.gather(command)
        self.end_entry()

    @rule(bucket=BUCKETS, path=PATHS, upload=UPLOADS)
    def finish_upload(self, bucket: str, path: str, upload: int) -> None:
        upload_id = upload.to_bytes(16, "big")
        known = self.model.uploads.get(upload_id)
        self.gather(
            put_inline(
                bucket,
                path,
                inline=None,
                upload_id=upload_id,
                etag="e-upload",
                size_bytes=known.size if known else CHUNK,
            )
        )

    @rule(upload=UPLOADS)
    def abort_upload(self, upload: int) -> None:
        self.gather(AbortUpload(upload_id=upload.to_bytes(16, "big"), actor=ADMIN))

    @rule(bucket=BUCKETS, quota=st.none() | st.integers(0, 6 * CHUNK))
    def create_bucket(self, bucket: str, quota: int | None) -> None:
        self.gather(CreateBucket(name=bucket, actor=ADMIN, quota_bytes=quota))

    @rule(bucket=BUCKETS, quota=st.none() | st.integers(0, 6 * CHUNK))
    def update_bucket(self, bucket: str, quota: int | None) -> None:
        self.gather(UpdateBucket(name=bucket, actor=ADMIN, quota_bytes=quota))

    @rule(bucket=BUCKETS, cascade=st.booleans())
    def delete_bucket(self, bucket: str, cascade: bool) -> None:
        self.gather(DeleteBucket(name=bucket, actor=ADMIN, cascade=cascade))

    @rule(late=st.integers(0, 1))
    def advance_generation(self, late: int) -> None:
        self.gather(AdvanceGeneration(expected=max(0, self.model.generation - late)))

    # Members come and go; the ring is whatever it is told to be.

    @rule(
        numbers=st.lists(NODES, min_size=1, max_size=5, unique=True),
        raise_floor=st.booleans(),
    )
    def change_ring(self, numbers: list[int], raise_floor: bool) -> None:
        node_ids = [make_member(number).node_id for number in numbers]
        known = tuple(each for each in node_ids if each in self.model.cluster.members)
        self.gather(
            ChangeRing(
                expected_epoch=self.model.cluster.epoch,
                node_ids=known or tuple(node_ids),
                raise_floor=raise_floor,
            )
        )
        self.end_entry()

    @rule(number=NODES, token=st.integers(1, 8), made=st.booleans())
    def admit(self, number: int, token: int, made: bool) -> None:
        token_id = f"t{token}"
        if made:
            self.gather(CreateJoinToken(token_id=token_id, secret_hash=bytes(32), actor=ADMIN))
        member = make_member(number)
        self.gather(AdmitMember(token_id=token_id, secret_hash=bytes(32), member=member))

    @rule(number=NODES, stage=st.sampled_from(["learner", "voter", "leaving"]), right=st.booleans())
    def set_member_stage(self, number: int, stage: str, right: bool) -> None:
        node_id = make_member(number).node_id
        known = self.model.cluster.members.get(node_id)
        expected = known.stage if known and right else "joining"
        self.gather(SetMemberStage(node_id=node_id, stage=stage, expected_stage=expected))

    @rule(number=NODES, intent=INTENTS, expected=st.none() | INTENTS, reduce=st.booleans())
    def set_member_intent(
        self, number: int, intent: str, expected: str | None, reduce: bool
    ) -> None:
        node_id = make_member(number).node_id
        self.gather(
            SetMemberIntent(
                node_id=node_id,
                actor=ADMIN,
                intent=intent,
                expected_intent=expected,
                reduce_copies=reduce,
            )
        )

    @rule(
        number=NODES,
        intent=st.sampled_from(["leave", "remove"]),
        skipped=st.sets(st.integers(0, 4), max_size=1),
    )
    def let_go(self, number: int, intent: str, skipped: set[int]) -> None:
        """What operator and leader do for one that goes, but for a step that may be left out."""
        node_id = make_member(number).node_id
        cluster = self.model.cluster

        def ring() -> None:
            others = [n for n in range(1, 6) if make_member(n).node_id in cluster.ring]
            self.change_ring([n for n in others if n != number] or [1], raise_floor=True)

        def mark() -> None:
            self.end_entry()
            known = cluster.members.get(node_id)
            stage = known.stage if known else "voter"
            self.gather(SetMemberStage(node_id=node_id, stage="leaving", expected_stage=stage))

        wish = SetMemberIntent(node_id=node_id, actor=ADMIN, intent=intent, reduce_copies=True)
        steps: list[Callable[[], None]] = [
            lambda: self.gather(wish),
            ring,
            self.settle_ring,
            mark,
            lambda: self.gather(ForgetMember(node_id=node_id)),
        ]
        for step, take in enumerate(steps):
            if step not in skipped:
                take()

    @rule(number=NODES, back=st.sampled_from([0, 0, 0, 1, -1]))
    def report_settled(self, number: int, back: int) -> None:
        epoch = max(0, self.model.cluster.epoch - back)
        self.gather(ReportSettled(node_id=make_member(number).node_id, epoch=epoch))

    @rule()
    def settle_ring(self) -> None:
        for node_id in sorted(self.model.cluster.ring):
            self.gather(ReportSettled(node_id=node_id, epoch=self.model.cluster.epoch))

    @rule(
        rate=st.none() | st.integers(0, 3),
        name=st.sampled_from(["repair_bytes_per_second", "scrub_interval_seconds"]),
    )
    def set_settings(self, name: str, rate: int | None) -> None:
        self.gather(SetClusterSettings(actor=ADMIN, settings={name: rate}))
        self.gather(ResumeCollection(actor=ADMIN))

    @rule(row_limit=st.integers(1, 12))
    def reclaim(self, row_limit: int) -> None:
        self.drain(row_limit)

    # The log.

    @rule(repeats=st.integers(0, 2))
    def end_entry(self, repeats: int = 0) -> None:
        """Apply what has gathered as one entry, with some proposals in it twice."""
        gathered = self.waiting + self.waiting[:repeats]
        results = self.append([proposal for _, proposal in gathered])
        first: dict[bytes, Result] = {}
        for (command, proposal), result in zip(gathered, results, strict=True):
            known = first.setdefault(proposal.request_id, result)
            if known is result:
                expected = self.model.apply(command, self.steady.time_ms)
                assert outcome(result) == expected, (command, result)
            assert result == known
            self.sent.append((proposal, result))
        self.waiting = []

    @rule(choice=st.integers(0, 2**32))
    def send_again(self, choice: int) -> None:
        """A late copy of any request gets its first answer, or comes after its time."""
        self.end_entry()
        if self.sent:
            proposal, result = self.sent[choice % len(self.sent)]
            (again,) = self.append([proposal])
            if self.steady.time_ms <= proposal.not_after_ms:
                assert again == result
            else:
                # Forgetting is bounded for each entry: the first answer may still be there.
                assert again == result or outcome(again) == "request_expired"

    def append(self, proposals: list[Proposal]) -> list[Result]:
        results = self.steady.apply(proposals)
        assert len(results) == len(proposals)
        return results

    @rule(milliseconds=st.sampled_from([1, 5000, 10_001, 12 * 3_600_000]))
    def advance_time(self, milliseconds: int) -> None:
        self.end_entry()
        self.steady.time_ms += milliseconds

    # The replica that moves.

    @rule(count=st.integers(1, 6), flush=st.booleans())
    def catch_up(self, count: int, flush: bool) -> None:
        """Apply some more entries, and commit them or not."""
        for entry in self.steady.log[self.moving_index : self.moving_index + count]:
            self.moving_index += 1
            answers = self.moving.apply(self.moving_index, 1, entry)
            self.answers.setdefault(self.moving_index, answers)
            assert self.answers[self.moving_index] == answers
        if flush:
            self.moving.flush()

    @rule(back=st.integers(1, 5))
    def replay(self, back: int) -> None:
        """Entries that come again give no answers and change nothing."""
        for index in range(max(0, self.moving_index - back), self.moving_index):
            assert self.moving.apply(index + 1, 1, self.steady.log[index]) == []

    @rule()
    def restart(self) -> None:
        self.moving.close()
        self.moving = StateMachine(self.moving_path)
        assert self.moving.applied.index == self.moving_index

    @rule()
    def crash(self) -> None:
        """Go on from the files as a kill leaves them: what wasn't committed is applied again."""
        self.crashes += 1
        path = os.path.join(self.directory, f"moving-{self.crashes}.db")
        for suffix in ("", "-wal"):
            if os.path.exists(self.moving_path + suffix):
                shutil.copy(self.moving_path + suffix, path + suffix)
        self.moving.close()
        self.moving_path, self.moving = path, StateMachine(path)
        self.moving_index = self.moving.applied.index

    @rule()
    def checkpoint(self) -> None:
        assert self.moving.checkpoint() == self.moving_index

    # What must hold.

    def drain(self, row_limit: int) -> None:
        """Work off the queue; what is left is what the model says is live."""
        self.end_entry()
        self.steady.drain(row_limit=row_limit)
        self.model.expire_uploads(self.steady.time_ms)
        assert (
            dict(self.steady.rows("SELECT chunk_id, refs FROM chunks")) == self.model.chunk_counts()
        )
        live_files = sum(len(bucket.files) for bucket in self.model.buckets.values())
        assert self.steady.rows("SELECT count(*) FROM versions") == [(live_files,)]
        assert self.steady.rows("SELECT count(*) FROM files") == [(live_files,)]
        assert self.steady.rows("SELECT count(*) FROM reclaim") == [(0,)]
        segments = sum(
            len(listed)
            for bucket in self.model.buckets.values()
            for _, _, listed, _ in bucket.files.values()
        ) + sum(len(upload.segments) for upload in self.model.uploads.values())
        assert self.steady.rows("SELECT count(*) FROM segments") == [(segments,)]
        assert self.steady.rows("SELECT count(*) FROM version_segments") == [(segments,)]

    @rule()
    def settle(self) -> None:
        """Once both have applied the whole log, every table and digest is equal."""
        self.end_entry()
        self.catch_up(count=len(self.steady.log), flush=True)
        assert tables_of(self.moving_path) == tables_of(self.steady.path)
        assert state_digest(self.moving_path) == state_digest(self.steady.path)

    @rule()
    def compare_members_with_model(self) -> None:
        """Readers see exactly the model's members, epochs and settings."""
        self.end_entry()
        modelled = self.model.cluster
        with self.steady.snapshot() as snapshot:
            members = {each.member.node_id: each for each in snapshot.members()}
            assert {
                node_id: (each.stage, each.intent, each.settled_epoch, each.in_ring)
                for node_id, each in members.items()
            } == {
                node_id: (each.stage, each.intent, each.settled, node_id in modelled.ring)
                for node_id, each in modelled.members.items()
            }
            assert [
                (epoch.epoch, {member.node_id for member in epoch.members})
                for epoch in snapshot.epochs()
            ] == sorted(((epoch, set(ids)) for epoch, ids in modelled.epochs.items()), reverse=True)
            cluster = snapshot.cluster()
            assert cluster.settings == ClusterSettings(**modelled.settings)
            assert all(snapshot.departed(node_id) for node_id in modelled.departed)
        applied = self.steady.machine.applied
        assert applied.settings == cluster.settings
        assert applied.cluster_version == cluster.cluster_version == CLUSTER_VERSION_SUPPORTED

    @rule()
    def compare_with_model(self) -> None:
        """Readers see exactly the model's buckets and files, with their usage and contents."""
        self.end_entry()
        with self.steady.snapshot() as snapshot:
            buckets = {bucket.name: bucket for bucket in snapshot.buckets()}
            assert set(buckets) == set(self.model.buckets)
            for name, modelled in self.model.buckets.items():
                bucket = buckets[name]
                assert (bucket.file_count, bucket.size_bytes, bucket.quota_bytes) == (
                    len(modelled.files),
                    modelled.size,
                    modelled.quota,
                )
                listed = snapshot.files(name).files
                assert [file.path for file in listed] == sorted(modelled.files, key=str.encode)
                for path, expected in modelled.files.items():
                    assert read_file(snapshot, name, path) == expected


def read_file(
    snapshot: Snapshot, bucket: str, path: str
) -> tuple[str, int, tuple[bytes, ...], bytes | None]:
    file = snapshot.file(bucket, path)
    assert file is not None
    assert snapshot.file_by_id(file.file_id) == file
    segments = snapshot.segments(file.version_id, 0, 1000)
    return file.etag, file.size_bytes, tuple(s.chunks for s in segments), file.inline


Replicas.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    # A failing log of fifty steps takes minutes to shrink; remove this line to have it done.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
TestReplicas = Replicas.TestCase
