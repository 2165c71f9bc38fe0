"""What queries of the replicated state return: immutable, typed, free of SQL."""

from __future__ import annotations

import msgspec

from ring.members import Member, NodeId


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class BucketRecord(_Record, frozen=True):
    name: str
    owner: str
    visibility: str
    hidden: bool
    quota_bytes: int | None
    created_ms: int
    file_count: int
    size_bytes: int


class FileRecord(_Record, frozen=True):
    """A file with its current version. Times are state time in milliseconds."""

    bucket: str
    path: str
    file_id: int
    version_id: int
    size_bytes: int
    etag: str
    content_type: str
    user_metadata: dict[str, str]
    tags: tuple[str, ...]
    owner: str
    created_ms: int
    modified_ms: int
    content_checksum: bytes | None
    chunking: int
    inline: bytes | None
    """The contents of a small file; None where segments hold them. Not loaded for listings."""


class SegmentRecord(_Record, frozen=True):
    """One run of chunks of a version; `chunks` is packed as in `PutFile.chunks`."""

    ordinal: int
    start: int
    """Offset of its first byte within the file."""
    size_bytes: int
    chunks: bytes


class UploadRecord(_Record, frozen=True):
    """A staged upload: what the segments so far add up to."""

    upload_id: bytes
    bucket: str
    actor: str
    segment_count: int
    size_bytes: int
    touched_ms: int


class Listing(_Record, frozen=True):
    """One page in key order. `prefixes` are the common prefixes up to the delimiter."""

    files: tuple[FileRecord, ...]
    prefixes: tuple[str, ...]
    next_cursor: str | None
    """Where the next page starts: the last key or prefix given; None at the end."""


class KeyRecord(_Record, frozen=True):
    key_id: str
    secret_hash: bytes
    role: str
    description: str
    created_ms: int


class MemberRecord(_Record, frozen=True):
    member: Member
    stage: str
    """joining, learner or voter; leaving: it is being removed, which can't be taken back."""
    in_ring: bool
    boot_counter: int
    software_version: str
    intent: str = "stay"
    """What an operator wants of it: stay, drain, leave or remove."""
    settled_epoch: int = 0
    """The last ring epoch of which it reported to have all its copies."""
    supported_version: int = 1
    """The highest cluster version its software can apply, as far as it has said."""


class ClusterSettings(_Record, frozen=True, omit_defaults=True):
    """What an operator may change while the cluster runs, the same on all nodes.

    The state holds what differs from these defaults.
    """

    repair_bytes_per_second: int = 100 * 1024 * 1024
    """What each node fetches at most for repair and moves; 0: no limit."""
    repair_bytes_per_second_beside_clients: int = 24 * 1024 * 1024
    """The same while clients are served, when a quarter of the other is used at most anyway; 0: no
    limit but that. Three large chunks a second occupy disk and processors for some hundredth of the
    time."""
    scrub_bytes_per_second: int = 20 * 1024 * 1024
    """What each node reads at most for scrubbing; 0: no limit."""
    scrub_interval_seconds: int = 14 * 24 * 3600
    """How often each node reads all its chunks again; 0: only when told to."""


class ClusterRecord(_Record, frozen=True):
    cluster_id: str
    cluster_version: int
    generation: int
    epoch: int
    epoch_floor: int
    replicas: int
    collection_held: bool = False
    """Whether garbage collection waits for an operator's word, after a restore (rule D10)."""
    settings: ClusterSettings = ClusterSettings()


class AppliedState(_Record, frozen=True):
    """What a replica knows after applying an entry; published to listeners, read without SQL."""

    index: int
    term: int
    time_ms: int
    generation: int
    epoch: int
    members_version: int
    """Grows whenever a member record changes, or an epoch comes or goes."""
    cluster_version: int = 1
    collection_held: bool = False
    settings: ClusterSettings = ClusterSettings()


class StateDigest(_Record, frozen=True):
    """What equal replicas agree on at an index (rule M8)."""

    index: int
    tables: dict[str, str]
    """BLAKE3-256 in hexadecimal of each replicated table's rows in key order."""


class MemberAddress(_Record, frozen=True):
    node_id: NodeId
    raft_address: str
