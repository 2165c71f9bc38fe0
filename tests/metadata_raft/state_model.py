"""What the state machine should do, in plain dicts: no SQL, no queue, no counters.

The model predicts the outcome of each command as a short text (a failure's code, or what was done),
and what must be left once all work in the queue is done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from metadata_raft.apply_files import precondition_refusal
from metadata_raft.chunk_references import unpack
from metadata_raft.commands import (
    AbortUpload,
    AdvanceGeneration,
    Command,
    CreateBucket,
    DeleteBucket,
    DeleteFile,
    PutFile,
    ReclaimStep,
    StageSegment,
    UpdateBucket,
)
from tests.fakes.metadata import make_member
from tests.metadata_raft.member_model import MemberModel

DAY_MS = 24 * 3_600_000


@dataclass
class ModelUpload:
    bucket: int
    segments: list[bytes]
    touched_ms: int

    @property
    def size(self) -> int:
        return sum(length for chunks in self.segments for _, length in unpack(chunks))


@dataclass
class ModelBucket:
    number: int
    quota: int | None
    files: dict[str, tuple[str, int, tuple[bytes, ...], bytes | None]] = field(default_factory=dict)
    """path: (etag, size, segments, inline)"""

    @property
    def size(self) -> int:
        return sum(size for _, size, _, _ in self.files.values())


@dataclass
class Model:
    """One admin's cluster; permissions are for other tests."""

    generation: int = 0
    cluster: MemberModel = field(default_factory=lambda: MemberModel(make_member(1).node_id))
    buckets: dict[str, ModelBucket] = field(default_factory=dict)
    uploads: dict[bytes, ModelUpload] = field(default_factory=dict)
    buckets_made: int = 0

    def apply(self, command: Command, time_ms: int) -> str:
        """Carry out a command and say what comes of it."""
        done = self.cluster.apply(command)
        if done is not None:
            return done
        match command:
            case CreateBucket():
                if command.name in self.buckets:
                    return "there"
                self.buckets_made += 1
                self.buckets[command.name] = ModelBucket(self.buckets_made, command.quota_bytes)
                return "created"
            case UpdateBucket():
                if command.name not in self.buckets:
                    return "no_such_bucket"
                quota = command.quota_bytes
                self.buckets[command.name].quota = quota if isinstance(quota, int) else None
                return "done"
            case DeleteBucket():
                bucket = self.buckets.get(command.name)
                if bucket is None:
                    return "no_such_bucket"
                if bucket.files and not command.cascade:
                    return "bucket_not_empty"
                del self.buckets[command.name]
                return "done"
            case PutFile():
                return self._put(command)
            case DeleteFile():
                bucket = self.buckets.get(command.bucket)
                if bucket is None:
                    return "no_such_bucket"
                file = bucket.files.get(command.path)
                if precondition_refusal(command.preconditions, file[0] if file else None):
                    return "precondition_failed"
                if file is None:
                    return "no_such_file"
                del bucket.files[command.path]
                return "deleted"
            case StageSegment():
                return self._stage(command, time_ms)
            case AbortUpload():
                return "done" if self.uploads.pop(command.upload_id, None) else "no_such_upload"
            case AdvanceGeneration():
                if command.expected != self.generation:
                    return "stale_expectation"
                self.generation += 1
                return "advanced"
            case ReclaimStep():
                # Steps are bounded; that uploads expire in them is checked when all is drained.
                return "reclaimed"
            case _:
                raise AssertionError(command)

    def expire_uploads(self, time_ms: int) -> None:
        """What a drained queue has done: uploads of a day ago, and of buckets that went, go."""
        live = {bucket.number for bucket in self.buckets.values()}
        self.uploads = {
            upload_id: upload
            for upload_id, upload in self.uploads.items()
            if upload.touched_ms >= time_ms - DAY_MS and upload.bucket in live
        }

    def chunk_counts(self) -> dict[bytes, int]:
        """How often each chunk occurs in what is live."""
        segments = [
            chunks
            for bucket in self.buckets.values()
            for _, _, listed, _ in bucket.files.values()
            for chunks in listed
        ]
        segments += [chunks for upload in self.uploads.values() for chunks in upload.segments]
        return dict(Counter(chunk_id for chunks in segments for chunk_id, _ in unpack(chunks)))

    def _restage(self, generation: int, oldest_epoch: int) -> bool:
        return self.generation > generation + 1 or oldest_epoch < self.cluster.epoch_floor

    def _put(self, command: PutFile) -> str:
        bucket = self.buckets.get(command.bucket)
        if bucket is None:
            return "no_such_bucket"
        file = bucket.files.get(command.path)
        if precondition_refusal(command.preconditions, file[0] if file else None):
            return "precondition_failed"
        segments: tuple[bytes, ...] = ()
        if command.chunks is not None:
            if self._restage(command.generation, command.oldest_epoch):
                return "restage"
            segments = (command.chunks,)
        elif command.upload_id is not None:
            upload = self.uploads.get(command.upload_id)
            if upload is None or upload.bucket != bucket.number:
                return "no_such_upload"
            segments = tuple(upload.segments)
            if upload.size != command.size_bytes:
                return "invalid_command"
        growth = command.size_bytes - (file[1] if file else 0)
        if bucket.quota is not None and growth > 0 and bucket.size + growth > bucket.quota:
            return "quota_exceeded"
        if command.upload_id is not None:
            del self.uploads[command.upload_id]
        bucket.files[command.path] = (command.etag, command.size_bytes, segments, command.inline)
        return "replaced" if file else "put"

    def _stage(self, command: StageSegment, time_ms: int) -> str:
        bucket = self.buckets.get(command.bucket)
        if bucket is None:
            return "no_such_bucket"
        upload = self.uploads.get(command.upload_id)
        if upload is None:
            if command.ordinal:
                return "no_such_upload"
            upload = ModelUpload(bucket.number, [], time_ms)
        elif upload.bucket != bucket.number:
            return "no_such_upload"
        if command.ordinal < len(upload.segments):
            same = upload.segments[command.ordinal] == command.chunks
            return "done" if same else "invalid_command"
        if command.ordinal > len(upload.segments):
            return "stale_expectation"
        if self._restage(command.generation, command.oldest_epoch):
            return "restage"
        upload.segments.append(command.chunks)
        upload.touched_ms = time_ms
        self.uploads[command.upload_id] = upload
        return "done"
