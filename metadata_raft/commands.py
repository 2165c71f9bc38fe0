"""Every change to the replicated state is one of these commands.

A command is proposed by any node, ordered by Raft, and applied by every replica's state machine
with the same result. It carries what its decision needs, because applying may use no clock, no
randomness and no I/O beyond the state: the time is the entry's state time, ids come from counters
in the state, generation and epoch come from the proposer and are checked.

Encoding is msgpack by msgspec, tagged by the command's name. A new field has a default; a new
command or meaning needs a higher `ENTRY_VERSION` and a committed `cluster_version`. The stored
form is described in docs/format.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ring.members import Member, NodeId

ENTRY_VERSION = 1
ENTRY_SIZE_LIMIT = 256 * 1024
"""Bytes of one Raft entry. Group commit fills entries up to this; one command must fit."""

INLINE_SIZE_LIMIT = 4096
"""Files up to this many bytes live inside the metadata."""

SEGMENT_CHUNK_LIMIT = 1024
CHUNK_REFERENCE_SIZE = 36
"""A packed chunk reference: 32 bytes of BLAKE3, then the length as a little-endian uint32."""

ANONYMOUS = ""
"""The actor of a request that carries no key."""

SYSTEM = "system"
"""The actor of what the cluster does by itself; never reachable through the gateway."""


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    pass


# --- buckets ---------------------------------------------------------------------------------


class CreateBucket(_Command, frozen=True):
    """Make a bucket; answers with the existing one (`created=False`) where it is there already."""

    name: str
    actor: str
    visibility: str = "private"
    """private, public-read or public-read-write."""
    hidden: bool = False
    quota_bytes: int | None = None


class UpdateBucket(_Command, frozen=True):
    """Change the named settings of a bucket; UNSET leaves one as it is."""

    name: str
    actor: str
    visibility: str | msgspec.UnsetType = msgspec.UNSET
    hidden: bool | msgspec.UnsetType = msgspec.UNSET
    quota_bytes: int | msgspec.UnsetType | None = msgspec.UNSET


class DeleteBucket(_Command, frozen=True):
    """Remove a bucket; with `cascade` its files go in the background, else it must be empty."""

    name: str
    actor: str
    cascade: bool = False


# --- files -----------------------------------------------------------------------------------


class Preconditions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9110 §13.1.1-2: entity tags as they stand between the quotes; `*` in the list is any."""

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None


class PutFile(_Command, frozen=True):
    """Make a new current version of a file, creating the file if need be.

    Exactly one of `inline`, `chunks` and `upload_id` holds the contents; an empty file is inline.
    """

    bucket: str
    path: str
    actor: str
    size_bytes: int
    etag: str
    content_type: str = "application/octet-stream"
    user_metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    preconditions: Preconditions = Preconditions()
    inline: bytes | None = None
    chunks: bytes | None = None
    """Packed chunk references, at most 1,024: the one segment of the version."""
    upload_id: bytes | None = None
    """A staged upload whose segments become the version's."""
    chunking: int = 0
    """The chunk size the file was cut with, in bytes."""
    generation: int = 0
    """The generation the gateway read before its first chunk write (rule D4)."""
    oldest_epoch: int = 0
    """The oldest ring epoch among the acknowledgements of its chunks (rule D6)."""
    content_checksum: bytes | None = None
    """BLAKE3-256 of the contents, where the whole was seen in one piece."""


class DeleteFile(_Command, frozen=True):
    """Remove a file; its space comes back in the background."""

    bucket: str
    path: str
    actor: str
    preconditions: Preconditions = Preconditions()


class StageSegment(_Command, frozen=True):
    """Reference one full segment of an upload that is longer than a segment (rule M2).

    The first one (`ordinal` 0) opens the upload; the ordinals have no gaps, a repeated one with the
    same chunks is answered again. An upload whose last touch is a day of state time old is dropped.
    """

    upload_id: bytes
    actor: str
    bucket: str
    ordinal: int
    chunks: bytes
    generation: int
    oldest_epoch: int


class AbortUpload(_Command, frozen=True):
    upload_id: bytes
    actor: str


# --- keys ------------------------------------------------------------------------------------


class CreateKey(_Command, frozen=True):
    """Store an API key by its hash; the secret itself never enters the log."""

    key_id: str
    secret_hash: bytes
    """BLAKE3-256 of the secret, which has 256 random bits."""
    actor: str
    role: str = "writer"
    """admin, writer or reader."""
    description: str = ""
    replaces_role: str | None = None
    """Revoke every key of this role in the same step (`holdfast admin reset-key`)."""


class RevokeKey(_Command, frozen=True):
    key_id: str
    actor: str


# --- members ---------------------------------------------------------------------------------


class CreateJoinToken(_Command, frozen=True):
    token_id: str
    secret_hash: bytes
    actor: str
    lifetime_ms: int = 3_600_000


class AdmitMember(_Command, frozen=True):
    """Spend a join token and record the node as joining; a repetition changes nothing."""

    token_id: str
    secret_hash: bytes
    member: Member


class UpdateMember(_Command, frozen=True):
    """Record a member's new addresses, boot counter or version; proposed by the node itself."""

    member: Member
    boot_counter: int
    software_version: str = ""


class SetMemberStage(_Command, frozen=True):
    """Advance a member (joining, learner, voter); the leader's membership worker decides."""

    node_id: NodeId
    stage: str
    expected_stage: str


class ChangeRing(_Command, frozen=True):
    """Make a new ring epoch with these members, if `expected_epoch` is still the current one."""

    expected_epoch: int
    node_ids: tuple[NodeId, ...]
    replicas: int = 3
    raise_floor: bool = False
    """Refuse from now on references staged in older epochs (rule D6)."""


class BootstrapCluster(_Command, frozen=True):
    """The first command of a new cluster: its identity, first member, first ring and admin key."""

    cluster_id: str
    member: Member
    replicas: int
    admin_key_id: str
    admin_secret_hash: bytes
    open_bucket: str | None = None
    """A bucket created public-read-write (`holdfast dev`)."""


# --- housekeeping ----------------------------------------------------------------------------


class AdvanceGeneration(_Command, frozen=True):
    """Add one to the generation, if it still is `expected` (rule D4)."""

    expected: int


class ReclaimStep(_Command, frozen=True):
    """Work off the queue of marked versions, buckets and uploads: at most `row_limit` rows."""

    row_limit: int = 500


class SetClusterVersion(_Command, frozen=True):
    version: int


Command = (
    CreateBucket
    | UpdateBucket
    | DeleteBucket
    | PutFile
    | DeleteFile
    | StageSegment
    | AbortUpload
    | CreateKey
    | RevokeKey
    | CreateJoinToken
    | AdmitMember
    | UpdateMember
    | SetMemberStage
    | ChangeRing
    | BootstrapCluster
    | AdvanceGeneration
    | ReclaimStep
    | SetClusterVersion
)


# --- the envelope ----------------------------------------------------------------------------


class IdempotencyKey(msgspec.Struct, frozen=True, array_like=True):
    """A client's key, by principal and bucket; with another request it is refused."""

    scope: str
    key: str
    fingerprint: bytes
    """BLAKE3 of what makes requests the same: method, path, parameters, contents."""


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """One command on its way into the log (rule M1)."""

    request_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    not_after_ms: int
    """State time after which the command is refused; its result is remembered until then."""
    command: msgspec.Raw
    """An encoded `Command`: the leader forwards it undecoded."""
    idempotency: IdempotencyKey | None = None


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What one Raft entry holds: a batch of proposals and the leader's stamp (rule M5)."""

    version: int
    time_ms: int
    """State time in milliseconds of the Unix epoch; never smaller than an earlier entry's."""
    proposals: list[Proposal]


# --- results ---------------------------------------------------------------------------------


class _Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    pass


class Failure(_Result, frozen=True):
    """A refusal; nothing was changed. Codes are stable, the detail is a sentence for people."""

    code: str
    detail: str
    retryable: bool = False


class Done(_Result, frozen=True):
    """Success with nothing to tell."""


class BucketDone(_Result, frozen=True):
    created: bool


class FilePut(_Result, frozen=True):
    file_id: int
    version_id: int
    created: bool
    etag: str
    modified_ms: int


class FileDeleted(_Result, frozen=True):
    version_id: int


class RingChanged(_Result, frozen=True):
    epoch: int


class Advanced(_Result, frozen=True):
    generation: int


class Reclaimed(_Result, frozen=True):
    rows: int
    remaining: bool


Result = Failure | Done | BucketDone | FilePut | FileDeleted | RingChanged | Advanced | Reclaimed

# Failure codes of the state machine; gateway/errors.py maps each to an HTTP status.
FAILURE_CODES = frozenset(
    {
        "precondition_failed",
        "no_such_bucket",
        "no_such_file",
        "no_such_key",
        "no_such_upload",
        "no_such_member",
        "bucket_exists",
        "bucket_not_empty",
        "quota_exceeded",
        "forbidden",
        "restage",
        "request_expired",
        "idempotency_key_reused",
        "invalid_command",
        "token_invalid",
        "stale_expectation",
        "already_bootstrapped",
        "too_many_keys",
    }
)

_command_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_result_decoder: msgspec.msgpack.Decoder[Result] = msgspec.msgpack.Decoder(Result)
_entry_decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


def encode(value: Command | Result | Entry | Proposal) -> bytes:
    return _command_encoder.encode(value)


def decode_command(data: bytes | msgspec.Raw) -> Command:
    """Raises msgspec.DecodeError or msgspec.ValidationError on bytes that are no command."""
    return _command_decoder.decode(data)


def decode_result(data: bytes) -> Result:
    return _result_decoder.decode(data)


def decode_entry(data: bytes) -> Entry:
    return _entry_decoder.decode(data)
