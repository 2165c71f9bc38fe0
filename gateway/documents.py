"""The JSON documents of the HTTP API, as types.

The gateway encodes its answers from these, `client.py` decodes them into the same types, and
`openapi.py` derives the published schemas from them, so the three cannot drift apart. Times are
state time in milliseconds of the Unix epoch; digests are lower-case hex.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Visibility = Literal["private", "public-read", "public-read-write"]
Role = Literal["admin", "writer", "reader"]


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document that clients send; an unknown field is an error rather than ignored."""


class Problem(_Document, frozen=True):
    """An error (RFC 9457). `code` is stable and for programs, `detail` is for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: bool
    """Whether the same request may succeed later, unchanged."""


# --- buckets ---------------------------------------------------------------------------------

Quota = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class BucketCreation(_Request, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    visibility: Visibility = "private"
    hidden: bool = False
    """Left out of bucket listings, except the administrators'."""
    quota_bytes: Quota | None = None


class BucketChange(_Request, frozen=True):
    """What is absent stays as it is."""

    visibility: Visibility | msgspec.UnsetType = msgspec.UNSET
    hidden: bool | msgspec.UnsetType = msgspec.UNSET
    quota_bytes: Quota | msgspec.UnsetType | None = msgspec.UNSET


class BucketDocument(_Document, frozen=True):
    name: str
    owner: str
    """The id of the key that created it."""
    visibility: str
    hidden: bool
    quota_bytes: int | None
    created_ms: int
    file_count: int
    size_bytes: int


class BucketPage(_Document, frozen=True):
    buckets: list[BucketDocument]
    next_cursor: str | None


# --- files -----------------------------------------------------------------------------------


class FileDocument(_Document, frozen=True):
    """Everything known of a file and its current version, except the contents."""

    bucket: str
    path: str
    file_id: int
    version_id: int
    size_bytes: int
    etag: str
    """Without the quotes it has in the ETag header."""
    content_type: str
    user_metadata: dict[str, str]
    tags: list[str]
    owner: str
    created_ms: int
    modified_ms: int
    content_blake3: str | None
    """BLAKE3-256 of the contents, where the whole was seen in one piece."""
    chunk_size_bytes: int
    """What the contents were cut into; 0 for a file that lives inside the metadata."""


class FilePage(_Document, frozen=True):
    """One page of a listing in key order."""

    files: list[FileDocument]
    prefixes: list[str]
    """The common prefixes, up to and with the delimiter."""
    next_cursor: str | None
    """Give it back as `cursor` for the next page; null at the end."""


class UploadReceipt(_Document, frozen=True):
    bucket: str
    path: str
    file_id: int
    version_id: int
    created: bool
    """False where a file was there already and got a new version."""
    etag: str
    size_bytes: int
    modified_ms: int


# --- keys and tokens -------------------------------------------------------------------------


class KeyCreation(_Request, frozen=True):
    role: Role = "writer"
    description: Annotated[str, msgspec.Meta(max_length=200)] = ""


class KeyDocument(_Document, frozen=True):
    key_id: str
    role: str
    description: str
    created_ms: int


class KeyList(_Document, frozen=True):
    keys: list[KeyDocument]


class NewKey(_Document, frozen=True):
    key_id: str
    role: str
    description: str
    key: str
    """The whole key, `hfk_<key id>_<secret>`; shown this once, only its hash is kept."""


class TokenCreation(_Request, frozen=True):
    lifetime_seconds: Annotated[int, msgspec.Meta(ge=1, le=7 * 24 * 3600)] = 3600


class NewToken(_Document, frozen=True):
    token: str
    """Admits one node, once; shown this once."""
    lifetime_seconds: int


# --- the cluster -----------------------------------------------------------------------------


class MemberDocument(_Document, frozen=True):
    node_id: str
    client_url: str
    peer_address: str
    raft_address: str
    zone: str
    weight: int
    stage: str
    """joining, learner or voter."""
    in_ring: bool
    reachable: bool | None
    """Whether the answering node reaches it; null where it has not tried."""
    software_version: str
    intent: str = "stay"
    """What its operator wants of it: stay, drain, leave or remove."""
    settled_epoch: int = 0
    """The newest epoch for which it has reported that it holds all that belongs there."""
    last_seen_seconds: float | None = None
    """How long ago it last answered the answering node; null where it never did since the start."""
    load: dict[str, float] = {}
    """Its own figures as it gave them then, by name, units last; empty where it never did."""


class RaftDocument(_Document, frozen=True):
    """The answering node's view of the Raft group."""

    role: str
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    voters: list[str] = []
    learners: list[str] = []
    lag_entries: dict[str, int] = {}
    """On the leader: how many entries of the log each other member lacks."""


class ChunksDocument(_Document, frozen=True):
    """How the chunks of the whole cluster are, as its nodes last said: sums over those that answer.

    What a node that is down lacks is not known; `complete` is false then.
    """

    complete: bool = False
    """Whether every node of the ring has answered."""
    lacking_copies: int = 0
    """Copies that a node should have and has not: under-replicated, or on their way to an owner."""
    misplaced_copies: int = 0
    """Copies on nodes that own them no longer; dropped once their owners have them."""
    unrecoverable_chunks: int = 0
    """Referenced chunks that were found on no node; the most that any node counts."""
    quarantined_chunks: int = 0
    """Damaged copies kept until there are healthy ones."""
    bytes_left: int = 0
    """What is still to be copied, as far as it is known."""
    bytes_per_second: float = 0.0
    eta_seconds: float | None = None
    """Until the last node has its copies, at the present rate; null where it is not known."""
    scrub_age_seconds: float | None = None
    """Since the longest unchecked node was read through in full, or its store was made; null where
    none says."""
    scrub_passes: int | None = None
    """Whole scrubs of the node that has had the fewest; null where none says."""
    scrub_percent: float | None = None
    """How far the present scrub is on the node where it is least far; null where none runs."""


class ClusterDocument(_Document, frozen=True):
    cluster_id: str
    cluster_version: int
    node_id: str
    """The node that answers."""
    software_version: str
    quorum: bool
    """Whether the answering node reaches a majority of the voters."""
    settled: bool | None
    """Whether all copies are where the current epoch wants them; null where it is not known."""
    epoch: int
    generation: int
    replicas: int
    raft: RaftDocument
    members: list[MemberDocument]
    load: dict[str, float]
    """Figures of the answering node by name, units last: `chunks_bytes`, `buffers_bytes`, …"""
    chunks: ChunksDocument = ChunksDocument()
    settings: dict[str, int] = {}
    """What holds for the whole cluster and may change at any time, by name, units last."""
    collection_held: bool = False
    """Whether no space is reclaimed until an operator says so, after a restore from a backup."""
    incarnation: int = 1
    """Grows when the metadata are restored; nodes of another one are refused."""
    warnings: list[str] = []
    """What an operator should look at, one sentence each; empty where all is well."""


class RingMemberDocument(_Document, frozen=True):
    node_id: str
    zone: str
    weight: int
    partitions: int
    """How many of the partitions it owns a copy of."""
    share: float
    """Its part of all copies, 0 to 1."""


class RingPreviewMemberDocument(_Document, frozen=True):
    """What a change of the ring means for one node. Shares are parts of all copies, 0 to 1."""

    node_id: str
    """`new` for a node that is yet to join."""
    zone: str
    weight: int
    partitions_before: int
    partitions_after: int
    partitions_gained: int
    bytes_before: int
    bytes_after: int
    bytes_gained: int
    """What it has to fetch from others."""
    share_before: float
    share_after: float
    feasible_before: float
    feasible_after: float
    """What its weight entitles it to, as far as the number of copies and the zones allow."""


class RingPreviewDocument(_Document, frozen=True):
    """What would move if the ring changed. Bytes are estimates, see docs/api.md."""

    change: Literal["join", "leave"]
    node_id: str
    copies_before: int
    copies_after: int
    """Copies of each chunk: the replicas wanted, or all the nodes there are."""
    partitions_moved: int
    """Copies of partitions that have to be made."""
    partitions_ideal: float
    """The least that any placement with exactly feasible shares would have to move."""
    bytes_moved: int
    seconds: float | None
    """How long the node that fetches most takes at the rate of the settings; null if unlimited."""
    members: list[RingPreviewMemberDocument]


class RingDocument(_Document, frozen=True):
    epoch: int
    epoch_floor: int
    replicas: int
    partitions: int
    members: list[RingMemberDocument]
    preview: RingPreviewDocument | None = None
    """Where one was asked for."""


class LeaveRequest(_Request, frozen=True):
    """For a node's own control socket; over HTTP it is a parameter."""

    reduce_copies: bool = False


Rate = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class SettingsChange(_Request, frozen=True):
    """What is absent stays as it is, null goes back to the default."""

    repair_bytes_per_second: Rate | msgspec.UnsetType | None = msgspec.UNSET
    """What a node fetches for repair and moves at most; 0 is without limit."""
    repair_bytes_per_second_beside_clients: Rate | msgspec.UnsetType | None = msgspec.UNSET
    """The same while clients are served; 0 is without a limit but a quarter of the other."""
    scrub_bytes_per_second: Rate | msgspec.UnsetType | None = msgspec.UNSET
    """What a node reads to verify its chunks at most; 0 is without limit."""
    scrub_interval_seconds: Rate | msgspec.UnsetType | None = msgspec.UNSET
    """From the start of one verification of all chunks to the next."""


class SettingsDocument(_Document, frozen=True):
    """What holds for the whole cluster and may change at any time."""

    repair_bytes_per_second: int
    repair_bytes_per_second_beside_clients: int
    scrub_bytes_per_second: int
    scrub_interval_seconds: int


class ScrubNodeDocument(_Document, frozen=True):
    """Whether a node has been told to reread all its chunks."""

    node_id: str
    passes: int | None = None
    """What its figure `scrub_passes` will be when it has; null where it could not be told."""
    detail: str = ""
    """Why it could not."""


class ScrubDocument(_Document, frozen=True):
    """A scrub was asked for; how far it is show the nodes' figures."""

    nodes: list[ScrubNodeDocument]


class HealthDocument(_Document, frozen=True):
    status: Literal["ok", "unavailable"]
    detail: str
