"""What a node has to know to take part in its metadata group; made once, at start."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from metadata_raft.journal import JournalSettings
from metadata_raft.records import MemberAddress
from ring.filesystem import FileSystem, RealFileSystem
from ring.members import NodeId


@dataclass(frozen=True, kw_only=True)
class RaftTiming:
    """How long things may take, in seconds; the defaults suit a LAN and an SSD."""

    election_min: float = 0.3
    """A member that heard nothing from its leader for this long, at least, asks for votes; on
    disks that need 100 ms for a sync 0.5 and 1.0 are better."""
    election_max: float = 0.6
    heartbeat: float = 0.05
    voter_gone: float = 300.0
    """A voter that has not answered its leader for this long gives its vote to a learner; long
    enough for a restart, for otherwise every one would change the configuration twice."""
    leader_fallback: float = 1.0
    """A leader that no majority has answered for this long steps down."""
    tick: float = 0.02
    connect_retry: float = 0.1
    connect_timeout: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RaftSettings:
    """The settings of a `MetadataGroup`.

    A new cluster is one node with `bootstrap`; every other node starts empty, with `seeds`, and
    waits until the leader makes it a learner. Once the directory exists, both are ignored.
    """

    node_id: NodeId
    cluster_id: str
    incarnation: int = 1
    boot_counter: int = 0
    """How often this node was started; members that know of a later start refuse it (rule M7)."""
    directory: str
    """Absolute path; holds the journal, the vote, the manifest and the state."""
    listen_host: str
    listen_port: int
    """0 takes a free port (tests); `MetadataGroup.listen_address` tells which."""
    advertise_address: str | None = None
    """`host:port` at which the others reach this node; the listening one where not given."""
    cluster_key: bytes
    """32 secret bytes every member has; peers prove to each other that they know it."""
    bootstrap: bool = False
    seeds: tuple[MemberAddress, ...] = ()
    """Members to begin with; the replicated state's addresses supersede them."""
    timing: RaftTiming = field(default_factory=RaftTiming)
    journal: JournalSettings = field(default_factory=JournalSettings)
    filesystem: FileSystem = field(default_factory=RealFileSystem)
    server_tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None
    tls_server_name: str | None = None
    """The name expected in a peer's certificate, where the addresses are no names."""
