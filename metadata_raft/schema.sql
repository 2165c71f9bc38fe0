-- The replicated state of one node, schema version 2 (PRAGMA user_version). What differs from version
-- 1 is also in schema_versions.py, which brings an older state up to date: new columns come last.
--
-- Every table but local_state is a function of the log alone: ids come from counters in `cluster`,
-- times from state time, and nothing may depend on when a node committed, crashed or reopened.
-- docs/format.md describes each column; digests.py compares the tables of replicas row by row.

CREATE TABLE cluster (
    singleton            INTEGER PRIMARY KEY CHECK (singleton = 1),
    cluster_id           TEXT    NOT NULL,
    cluster_version      INTEGER NOT NULL,
    applied_index        INTEGER NOT NULL,
    applied_term         INTEGER NOT NULL,
    time_ms              INTEGER NOT NULL,
    generation           INTEGER NOT NULL,
    epoch                INTEGER NOT NULL,
    epoch_floor          INTEGER NOT NULL,
    replicas             INTEGER NOT NULL,
    members_version      INTEGER NOT NULL,
    next_bucket_id       INTEGER NOT NULL,
    next_file_id         INTEGER NOT NULL,
    next_version_id      INTEGER NOT NULL,
    next_segment_id      INTEGER NOT NULL,
    next_reclaim_id      INTEGER NOT NULL,
    idempotency_count    INTEGER NOT NULL,
    collection_held      INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What only this node knows: changed by a checkpoint, so that its commit has something to sync.
CREATE TABLE local_state (
    singleton            INTEGER PRIMARY KEY CHECK (singleton = 1),
    checkpoints          INTEGER NOT NULL
) STRICT;

-- Namespaces and files ------------------------------------------------------------------------

CREATE TABLE buckets (
    bucket_id            INTEGER PRIMARY KEY,
    name                 TEXT    NOT NULL UNIQUE,
    owner                TEXT    NOT NULL,
    visibility           TEXT    NOT NULL,
    hidden               INTEGER NOT NULL,
    quota_bytes          INTEGER,
    versioning           INTEGER NOT NULL DEFAULT 0,
    versions_max         INTEGER,
    version_age_max_ms   INTEGER,
    created_ms           INTEGER NOT NULL,
    file_count           INTEGER NOT NULL,
    size_bytes           INTEGER NOT NULL
) STRICT;

CREATE TABLE files (
    file_id              INTEGER PRIMARY KEY,
    bucket_id            INTEGER NOT NULL,
    path                 TEXT    NOT NULL,
    version_id           INTEGER NOT NULL,   -- the current one
    owner                TEXT    NOT NULL,
    created_ms           INTEGER NOT NULL,
    UNIQUE (bucket_id, path)
) STRICT;

-- `inline` stays last: reading the columns before it never loads contents.
CREATE TABLE versions (
    version_id           INTEGER PRIMARY KEY,
    file_id              INTEGER NOT NULL,
    size_bytes           INTEGER NOT NULL,
    etag                 TEXT    NOT NULL,
    content_type         TEXT    NOT NULL,
    user_metadata        BLOB,               -- msgpack map, NULL if empty
    tags                 BLOB,               -- msgpack array, NULL if empty
    author               TEXT    NOT NULL,
    created_ms           INTEGER NOT NULL,
    superseded_ms        INTEGER,            -- NULL: current; else kept as history
    content_checksum     BLOB,
    chunking             INTEGER NOT NULL,
    is_inline            INTEGER NOT NULL,
    inline               BLOB
) STRICT;

-- History of a file; costs nothing while versions are current.
CREATE INDEX versions_by_file ON versions (file_id, version_id) WHERE superseded_ms IS NOT NULL;

-- Segments and chunks: versions count segments, segments count chunks (rule M2) ---------------

CREATE TABLE version_segments (
    version_id           INTEGER NOT NULL,
    start                INTEGER NOT NULL,   -- offset of the segment's first byte in the version
    ordinal              INTEGER NOT NULL,
    segment_id           INTEGER NOT NULL,
    PRIMARY KEY (version_id, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE segments (
    segment_id           INTEGER PRIMARY KEY,
    refs                 INTEGER NOT NULL,
    size_bytes           INTEGER NOT NULL,
    chunks               BLOB    NOT NULL    -- 36 bytes each: id, length
) STRICT;

CREATE TABLE chunks (
    chunk_id             BLOB    PRIMARY KEY,
    refs                 INTEGER NOT NULL    -- occurrences in segments; never 0
) STRICT, WITHOUT ROWID;

CREATE TABLE uploads (
    upload_id            BLOB    PRIMARY KEY,
    bucket_id            INTEGER NOT NULL,
    actor                TEXT    NOT NULL,
    version_id           INTEGER NOT NULL,   -- reserved; has segments, but no row in versions yet
    segment_count        INTEGER NOT NULL,
    size_bytes           INTEGER NOT NULL,
    touched_ms           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX uploads_by_touch ON uploads (touched_ms, upload_id);
CREATE INDEX uploads_by_bucket ON uploads (bucket_id, upload_id);

-- Work that deletes and overwrites leave behind, first in, first out.
CREATE TABLE reclaim (
    reclaim_id           INTEGER PRIMARY KEY,
    kind                 TEXT    NOT NULL,   -- bucket, version
    target_id            INTEGER NOT NULL,
    position             INTEGER NOT NULL,   -- chunks of the first segment already released
    queued_ms            INTEGER NOT NULL
) STRICT;

-- Identity ------------------------------------------------------------------------------------

CREATE TABLE users (
    user_id              TEXT    PRIMARY KEY,
    password_hash        BLOB    NOT NULL,
    role                 TEXT    NOT NULL,
    created_ms           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE keys (
    key_id               TEXT    PRIMARY KEY,
    secret_hash          BLOB    NOT NULL,
    role                 TEXT    NOT NULL,
    description          TEXT    NOT NULL,
    user_id              TEXT,
    created_ms           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    bucket_id            INTEGER NOT NULL,
    principal            TEXT    NOT NULL,
    permission           TEXT    NOT NULL,   -- read, write, admin
    PRIMARY KEY (bucket_id, principal)
) STRICT, WITHOUT ROWID;

-- Cluster -------------------------------------------------------------------------------------

CREATE TABLE tokens (
    token_id             TEXT    PRIMARY KEY,
    secret_hash          BLOB    NOT NULL,
    expires_ms           INTEGER NOT NULL,
    spent_by             TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_by_expiry ON tokens (expires_ms, token_id);

CREATE TABLE members (
    node_id              TEXT    PRIMARY KEY,
    peer_address         TEXT    NOT NULL,
    raft_address         TEXT    NOT NULL,
    client_url           TEXT    NOT NULL,
    zone                 TEXT    NOT NULL,
    weight               INTEGER NOT NULL,
    stage                TEXT    NOT NULL,   -- joining, learner, voter, leaving
    boot_counter         INTEGER NOT NULL,
    software_version     TEXT    NOT NULL,
    intent               TEXT    NOT NULL DEFAULT 'stay',   -- stay, drain, leave, remove
    settled_epoch        INTEGER NOT NULL DEFAULT 0,
    supported_version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

-- Who was a member and is not any more: a node that comes back is told so.
CREATE TABLE departed (
    node_id              TEXT    PRIMARY KEY,
    departed_ms          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Only what differs from the defaults in records.ClusterSettings.
CREATE TABLE settings (
    name                 TEXT    PRIMARY KEY,
    value                INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE epochs (
    epoch                INTEGER PRIMARY KEY,
    replicas             INTEGER NOT NULL,
    members              BLOB    NOT NULL,   -- msgpack array of Member, as they were then
    created_ms           INTEGER NOT NULL
) STRICT;

-- Exactly once (rule M1) ----------------------------------------------------------------------

CREATE TABLE request_results (
    request_id           BLOB    PRIMARY KEY,
    not_after_ms         INTEGER NOT NULL,
    result               BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX request_results_by_expiry ON request_results (not_after_ms, request_id);

CREATE TABLE idempotency_results (
    scope                TEXT    NOT NULL,
    key                  TEXT    NOT NULL,
    fingerprint          BLOB    NOT NULL,
    result               BLOB    NOT NULL,
    created_ms           INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_results_by_age ON idempotency_results (created_ms, scope, key);

INSERT INTO cluster VALUES (1, '', 1, 0, 0, 0, 0, 0, 0, 3, 0, 1, 1, 1, 1, 1, 0, 0);
INSERT INTO local_state VALUES (1, 0);
