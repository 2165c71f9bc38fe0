"""Every change to the replicated state is one of these commands.

A command is proposed by any node, ordered by Raft, and applied by every replica's state machine
with the same result. It carries what its decision needs, because applying may use no clock, no
randomness and no I/O beyond the state: the time is the entry's state time, ids come from counters
in the state, generation and epoch come from the proposer and are checked.

Encoding is msgpack by msgspec, tagged by the command's name. A new field has a default; a new
command or meaning needs a committed `cluster_version` that allows it (`required_version`). The
stored form is described in docs/format.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ring.members import Member, NodeId

ENTRY_VERSION = 1
"""Of the envelope: `Entry` and `Proposal`."""

CLUSTER_VERSION_SUPPORTED = 2
"""The highest cluster version whose commands this software can apply."""

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

NAME_LENGTH_LIMIT = 256
"""Characters of an entity tag, a content type, a description, or an id that a proposer chose."""

USER_METADATA_SIZE_LIMIT = 8 * 1024
"""Bytes of a file's user metadata (keys and values) and tags together, in UTF-8."""

RECLAIM_ROW_LIMIT = 1_000
"""Rows that one `ReclaimStep` may touch at most (rule M2)."""

KEY_LIMIT = 1_000
"""API keys in a cluster: one command may have to revoke them all (rule M2)."""

RING_MEMBER_LIMIT = 1_000
"""Members of one ring epoch; an epoch is one row."""

SETTING_LIMIT = 16
"""Settings that one command may change; more than there are."""

REQUEST_LIFETIME_LIMIT_MS = 24 * 3_600_000
"""How far ahead of state time `Proposal.not_after_ms` may lie."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A size, number, generation, epoch or time: what every reader of msgpack or JSON holds exactly."""

Name = Annotated[str, msgspec.Meta(max_length=NAME_LENGTH_LIMIT)]
ShortId = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_LIMIT)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
UploadId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


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
    quota_bytes: Count | None = None


class UpdateBucket(_Command, frozen=True):
    """Change the named settings of a bucket; UNSET leaves one as it is."""

    name: str
    actor: str
    visibility: str | msgspec.UnsetType = msgspec.UNSET
    hidden: bool | msgspec.UnsetType = msgspec.UNSET
    quota_bytes: Count | msgspec.UnsetType | None = msgspec.UNSET


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
    size_bytes: Count
    etag: Name
    content_type: Name = "application/octet-stream"
    user_metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    preconditions: Preconditions = Preconditions()
    inline: bytes | None = None
    chunks: bytes | None = None
    """Packed chunk references, at most 1,024: the one segment of the version."""
    upload_id: UploadId | None = None
    """A staged upload whose segments become the version's; its generation and epochs were checked
    segment by segment, so those below don't count."""
    chunking: Count = 0
    """The chunk size the file was cut with, in bytes."""
    generation: Count = 0
    """The generation the gateway read before its first chunk write (rule D4)."""
    oldest_epoch: Count = 0
    """The oldest ring epoch among the acknowledgements of its chunks (rule D6)."""
    content_checksum: Digest | None = None
    """BLAKE3-256 of the contents, where the whole was seen in one piece."""


class DeleteFile(_Command, frozen=True):
    """Remove a file; its space comes back in the background."""

    bucket: str
    path: str
    actor: str
    preconditions: Preconditions = Preconditions()


class StageSegment(_Command, frozen=True):
    """Reference one segment of an upload that is longer than a segment (rule M2).

    The first one (`ordinal` 0) opens the upload; the ordinals have no gaps: one that comes before
    its predecessor is answered with a retryable `stale_expectation`. One of the last 64 repeated
    with the same chunks is answered again. Every segment but the last should be full. An upload
    whose last touch is a day of state time old is dropped.
    """

    upload_id: UploadId
    actor: str
    bucket: str
    ordinal: Count
    chunks: bytes
    generation: Count
    oldest_epoch: Count


class AbortUpload(_Command, frozen=True):
    """Drop a staged upload; its space comes back in the background."""

    upload_id: UploadId
    actor: str


# --- keys ------------------------------------------------------------------------------------


class CreateKey(_Command, frozen=True):
    """Store an API key by its hash; the secret itself never enters the log."""

    key_id: ShortId
    secret_hash: Digest
    """BLAKE3-256 of the secret, which has 256 random bits."""
    actor: str
    role: str = "writer"
    """admin, writer or reader."""
    description: Name = ""
    replaces_role: str | None = None
    """Revoke every key of this role in the same step (`holdfast admin reset-key`)."""


class RevokeKey(_Command, frozen=True):
    """Remove an API key; what it did stays."""

    key_id: ShortId
    actor: str


# --- members ---------------------------------------------------------------------------------


class CreateJoinToken(_Command, frozen=True):
    """Store a one-use join token by its hash; it expires in state time."""

    token_id: ShortId
    secret_hash: Digest
    actor: str
    lifetime_ms: Annotated[int, msgspec.Meta(gt=0, le=30 * 24 * 3_600_000)] = 3_600_000


class AdmitMember(_Command, frozen=True):
    """Spend a join token and record the node as joining; a repetition changes nothing."""

    token_id: ShortId
    secret_hash: Digest
    member: Member


class UpdateMember(_Command, frozen=True):
    """Record a member's new addresses, boot counter or version; proposed by the node itself.

    A boot counter below the recorded one is a `stale_expectation`: the node runs on a restored
    snapshot of its disk (rule M7). A new zone or weight counts from the next ring epoch.
    """

    member: Member
    boot_counter: Count
    software_version: Name = ""
    supported_version: Count = 1
    """The highest cluster version the node's software can apply."""


class SetMemberStage(_Command, frozen=True):
    """Move a member from one stage to another, if it still is there.

    joining, learner and voter follow the Raft configuration. `leaving` comes before it: from there
    on the node is removed for good. The leader decides; `stale_expectation` if the member is
    elsewhere, and for `leaving` unless the member is to be removed, or is to leave, is no more in
    the ring, and the ring has settled without it.
    """

    node_id: NodeId
    stage: str
    expected_stage: str


class ChangeRing(_Command, frozen=True):
    """Make a new ring epoch with these members, if `expected_epoch` is still the current one."""

    expected_epoch: Count
    node_ids: Annotated[
        tuple[NodeId, ...], msgspec.Meta(min_length=1, max_length=RING_MEMBER_LIMIT)
    ]
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    raise_floor: bool = False
    """Refuse from now on references staged in older epochs (rule D6)."""


class SetMemberIntent(_Command, frozen=True):
    """Say what is wanted of a member: stay, drain, leave or remove. The leader carries it out.

    stay: in the ring. drain: out of the ring, still a member of the Raft group. leave: out of the
    ring, and when the others hold all its copies out of the cluster. remove: out at once, because
    the node is gone for good. `too_few_nodes` where drain or leave would leave fewer nodes in the
    ring than there are to be copies, unless `reduce_copies` agrees to that, and always where none
    would be left. Nothing changes for a member whose stage is leaving: `stale_expectation`.
    """

    node_id: NodeId
    actor: str
    intent: str
    expected_intent: str | None = None
    """What it has to be before, else `stale_expectation`; None: whatever it is."""
    reduce_copies: bool = False


class ForgetMember(_Command, frozen=True):
    """Drop the record of a member that has left ring and Raft configuration: the last step.

    Its id stays known as one that was removed, so that the node is told when it comes back.
    """

    node_id: NodeId


class ReportSettled(_Command, frozen=True):
    """A node has every copy that the ring of this epoch wants of it; proposed by the node (D3).

    Epochs that every member of the current ring has settled beyond are forgotten.
    """

    node_id: NodeId
    epoch: Count


class BootstrapCluster(_Command, frozen=True):
    """The first command of a new cluster: its identity, first member, first ring and admin key."""

    cluster_id: ShortId
    member: Member
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)]
    admin_key_id: ShortId
    admin_secret_hash: Digest
    open_bucket: str | None = None
    """A bucket created public-read-write (`holdfast dev`)."""


# --- housekeeping ----------------------------------------------------------------------------


class AdvanceGeneration(_Command, frozen=True):
    """Add one to the generation, if it still is `expected` (rule D4)."""

    expected: Count


class ReclaimStep(_Command, frozen=True):
    """Work off the queue of marked versions, buckets and uploads: about `row_limit` rows.

    Also queues the uploads that nobody touched for a day, and forgets join tokens a day after they
    expired. What was queued less than `grace_ms` of state time ago stays, for readers of long files
    that page through the segments of a version just replaced.
    """

    row_limit: Annotated[int, msgspec.Meta(ge=1, le=RECLAIM_ROW_LIMIT)] = 500
    grace_ms: Count = 0


class SetClusterVersion(_Command, frozen=True):
    """Allow what needs this version; never goes back, and ends a node too old to follow."""

    version: Count


class SetClusterSettings(_Command, frozen=True):
    """Change settings of the cluster by name (`records.ClusterSettings`); None: the default."""

    actor: str
    settings: Annotated[dict[str, Count | None], msgspec.Meta(max_length=SETTING_LIMIT)]


class ResumeCollection(_Command, frozen=True):
    """Let garbage collection go on, which a restored backup holds (rule D10)."""

    actor: str


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
    | SetMemberIntent
    | ForgetMember
    | ReportSettled
    | SetClusterSettings
    | ResumeCollection
)

_VERSION_2 = (SetMemberIntent, ForgetMember, ReportSettled, SetClusterSettings, ResumeCollection)


def required_version(command: Command) -> int:
    """The cluster version from which a command may be in the log: older software can't read it."""
    return 2 if isinstance(command, _VERSION_2) else 1


# --- the envelope ----------------------------------------------------------------------------


class IdempotencyKey(msgspec.Struct, frozen=True, array_like=True):
    """A client's key, by principal and bucket; with another request it is refused."""

    scope: str
    key: str
    fingerprint: bytes
    """BLAKE3 of what makes requests the same: method, path, parameters, contents."""


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """One command on its way into the log (rule M1).

    A repetition carries the same request id and begins before the first one's `not_after_ms` has
    passed; then it takes effect once. Ids that begin with the proposer's coarse time keep the table
    of results compact (`request_ids.py`); nothing else depends on their form.
    """

    request_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    not_after_ms: int
    """State time after which the command is refused; its result is remembered until then."""
    command: msgspec.Raw
    """An encoded `Command`: the leader forwards it undecoded."""
    idempotency: IdempotencyKey | None = None


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What one Raft entry holds: a batch of proposals and the leader's stamp (rule M5)."""

    version: int
    time_ms: Count
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
        "idempotency_keys_full",
        "too_few_nodes",
        "member_removed",
        "cluster_version_too_old",
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
