"""What every operation of the HTTP API takes and answers: the data behind /openapi.json.

The statuses of refusals come from the table in `errors.py` by their codes, the schemas of documents
from the types in `documents.py`; a test compares the operations with the routes that are served,
and another one the statuses that are served with those given here.
"""

from __future__ import annotations

import msgspec

from gateway import documents as d
from gateway import paths
from gateway.cluster_operations import CLUSTER_OPERATIONS
from gateway.operation import BINARY, DOCUMENT, KEYED, WRITE, Operation, Parameter
from gateway.queries import PAGE_LIMIT
from metadata_raft.names import PATH_SIZE_LIMIT

_IN_BUCKET = ("invalid_bucket_name", "invalid_path", "no_such_bucket")
_FILE = (*_IN_BUCKET, "no_such_file")

_BUCKET_NAME = {
    "type": "string",
    "minLength": 3,
    "maxLength": 63,
    "pattern": "^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$",
}
_STRING = {"type": "string"}
_KEY_PART = {"type": "string", "maxLength": PATH_SIZE_LIMIT // 4, "pattern": "^[^\\x00]*$"}
_TAGS = {"type": "string", "pattern": '^(\\*|"[\\x21\\x23-\\x7e]*"(, ?"[\\x21\\x23-\\x7e]*")*)$'}

_BUCKET = Parameter("bucket", "path", _BUCKET_NAME, "The bucket's name.")
_PATH = Parameter(
    "path",
    "path",
    {
        "type": "string",
        "minLength": 1,
        "maxLength": PATH_SIZE_LIMIT // 4,
        "pattern": "^[^/\\x00.][^/\\x00]*$",
    },
    "The file's path within the bucket, at most 1,024 bytes of UTF-8. Its slashes stand as they "
    "are, an encoded one is refused, and so are empty, '.' and '..' components.",
)
_LIMIT = Parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": PAGE_LIMIT, "default": PAGE_LIMIT},
    "Entries of the page at most.",
)
_CURSOR = Parameter("cursor", "query", _KEY_PART, "`next_cursor` of the page before.")
_CONSISTENCY = Parameter(
    "X-Consistency",
    "header",
    {"type": "string", "enum": ["local"]},
    "`local` answers from this node's own state, which may be stale, and needs no quorum.",
)
_IF_MATCH = Parameter("If-Match", "header", _TAGS, "Entity tags, or `*` for any (RFC 9110).")
_IF_NONE_MATCH = Parameter(
    "If-None-Match", "header", _TAGS, "Entity tags, or `*` for any (RFC 9110)."
)
_IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
    "A repetition with the same key is answered as the first time, and changes nothing.",
)
_UPLOAD_PARAMETERS = (
    _BUCKET,
    _PATH,
    _IF_MATCH,
    _IF_NONE_MATCH,
    _IDEMPOTENCY,
    Parameter(
        "X-File-Size", "header", {"type": "integer", "minimum": 0}, "Checked against the body."
    ),
    Parameter(
        "X-Content-BLAKE3",
        "header",
        {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
        "Checked against the contents.",
    ),
    Parameter(
        "X-Tags",
        "header",
        {"type": "string", "pattern": "^[a-z0-9]+(,[a-z0-9]+)*$", "maxLength": 180},
        "Tags, separated by commas, each percent-encoded. `X-Meta-<name>` headers, percent-encoded "
        "as well, are stored as the file's own metadata.",
    ),
)
_UPLOAD_REFUSALS = (
    *WRITE,
    *_IN_BUCKET,
    "invalid_header",
    "invalid_multipart",
    "size_mismatch",
    "digest_mismatch",
    "precondition_failed",
    "unsupported_media_type",
    "idempotency_key_reused",
    "restage",
    "chunks_unavailable",
    "storage_full",
    "quota_exceeded",
)
_DOWNLOAD_PARAMETERS = (
    Parameter(
        "Range", "header", {"type": "string", "pattern": "^bytes=[0-9]{1,9}-$"}, "One byte range."
    ),
    Parameter("If-Range", "header", _STRING, "Only an entity tag makes the range count."),
    _IF_MATCH,
    _IF_NONE_MATCH,
    Parameter("If-Modified-Since", "header", _STRING, "An HTTP date."),
    Parameter("If-Unmodified-Since", "header", _STRING, "An HTTP date."),
    _CONSISTENCY,
)
_DOWNLOAD_ANSWERS: dict[int, type[msgspec.Struct] | str | None] = {
    200: "*/*",
    206: "*/*",
    304: None,
}
_DOWNLOAD_REFUSALS = (
    *KEYED,
    *_FILE,
    "invalid_header",
    "precondition_failed",
    "range_not_satisfiable",
    "chunks_unavailable",
    "content_damaged",
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "PUT",
        paths.FILE,
        "putFile",
        "Store a file. The body is the file, or multipart/form-data with exactly one.",
        {200: d.UploadReceipt, 201: d.UploadReceipt},
        _UPLOAD_REFUSALS,
        _UPLOAD_PARAMETERS,
        body=BINARY,
        body_required=False,
    ),
    Operation(
        "POST",
        paths.FILE,
        "postFile",
        "The same as PUT.",
        {200: d.UploadReceipt, 201: d.UploadReceipt},
        _UPLOAD_REFUSALS,
        _UPLOAD_PARAMETERS,
        body=BINARY,
        body_required=False,
    ),
    Operation(
        "GET",
        paths.FILE,
        "getFile",
        "The contents of a file.",
        _DOWNLOAD_ANSWERS,
        _DOWNLOAD_REFUSALS,
        (_BUCKET, _PATH, *_DOWNLOAD_PARAMETERS),
    ),
    Operation(
        "DELETE",
        paths.FILE,
        "deleteFile",
        "Remove a file.",
        {204: None},
        (
            *WRITE,
            *_FILE,
            "invalid_header",
            "precondition_failed",
            "idempotency_key_reused",
            "body_too_large",
        ),
        (_BUCKET, _PATH, _IF_MATCH, _IF_NONE_MATCH, _IDEMPOTENCY),
    ),
    Operation(
        "GET",
        paths.BY_ID,
        "getFileById",
        "The contents of the file with this id, whatever its path; Content-Location says it.",
        _DOWNLOAD_ANSWERS,
        _DOWNLOAD_REFUSALS,
        (
            Parameter(
                "file_id",
                "path",
                {"type": "integer", "minimum": 1, "maximum": 10**17},
                "The file's id, which stays when it gets new versions.",
            ),
            *_DOWNLOAD_PARAMETERS,
        ),
    ),
    Operation(
        "GET",
        paths.METADATA,
        "getMetadata",
        "Everything known of a file, except its contents.",
        {200: d.FileDocument},
        (*KEYED, *_FILE, "invalid_header"),
        (_BUCKET, _PATH, _CONSISTENCY),
    ),
    Operation(
        "GET",
        paths.LISTING,
        "listFiles",
        "The files of a bucket in key order, a page at a time.",
        {200: d.FilePage},
        (*KEYED, *_IN_BUCKET, "invalid_header"),
        (
            _BUCKET,
            Parameter("prefix", "query", _KEY_PART, "Only keys that begin with this."),
            Parameter(
                "delimiter",
                "query",
                _KEY_PART,
                "Keys that have it behind the prefix are folded into one common prefix.",
            ),
            _CURSOR,
            _LIMIT,
            _CONSISTENCY,
        ),
    ),
    Operation(
        "GET",
        paths.BUCKETS,
        "listBuckets",
        "The buckets this client may read; hidden ones for administrators only.",
        {200: d.BucketPage},
        (*KEYED, "invalid_header"),
        (_CURSOR, _LIMIT, _CONSISTENCY),
    ),
    Operation(
        "POST",
        paths.BUCKETS,
        "createBucket",
        "Make a bucket: 201, or 200 with the one that was there already.",
        {200: d.BucketDocument, 201: d.BucketDocument},
        (*DOCUMENT, "invalid_bucket_name", "bucket_exists", "no_such_bucket"),
        body=d.BucketCreation,
    ),
    Operation(
        "GET",
        paths.BUCKET,
        "getBucket",
        "A bucket's settings and usage.",
        {200: d.BucketDocument},
        (*KEYED, *_IN_BUCKET, "invalid_header"),
        (_BUCKET, _CONSISTENCY),
    ),
    Operation(
        "PATCH",
        paths.BUCKET,
        "changeBucket",
        "Change the settings that the body names.",
        {200: d.BucketDocument},
        (*DOCUMENT, *_IN_BUCKET),
        (_BUCKET,),
        body=d.BucketChange,
    ),
    Operation(
        "DELETE",
        paths.BUCKET,
        "deleteBucket",
        "Remove a bucket.",
        {204: None},
        (*WRITE, *_IN_BUCKET, "bucket_not_empty"),
        (
            _BUCKET,
            Parameter(
                "cascade",
                "query",
                {"type": "string", "enum": ["true", "false"]},
                "`true` removes its files as well; else it has to be empty.",
            ),
        ),
    ),
    Operation(
        "GET",
        paths.KEYS,
        "listKeys",
        "All API keys, without their secrets.",
        {200: d.KeyList},
        (*KEYED, "invalid_header"),
        (_CONSISTENCY,),
    ),
    Operation(
        "POST",
        paths.KEYS,
        "createKey",
        "Make an API key; the answer is the only place where it ever stands in full.",
        {201: d.NewKey},
        (*DOCUMENT, "too_many_keys"),
        body=d.KeyCreation,
        body_required=False,
    ),
    Operation(
        "DELETE",
        paths.KEY,
        "revokeKey",
        "Revoke an API key.",
        {204: None},
        (*WRITE, "no_such_key", "invalid_path", "stale_expectation"),
        (Parameter("key_id", "path", {"type": "string", "pattern": "^[0-9a-f]{16}$"}, "Its id."),),
    ),
    *CLUSTER_OPERATIONS,
    Operation(
        "GET",
        paths.BACKUP,
        "backup",
        "The metadata of the answering node as a backup file, for `holdfast meta restore`.",
        {200: BINARY},
        (*KEYED, "invalid_header", "overloaded"),
        (_CONSISTENCY,),
    ),
    Operation(
        "GET",
        paths.HEALTH_LIVE,
        "healthLive",
        "Whether the process answers.",
        {200: d.HealthDocument},
        (),
        is_open=True,
    ),
    Operation(
        "GET",
        paths.HEALTH_READY,
        "healthReady",
        "Whether requests should be sent to this node, or whether it may be stopped.",
        {200: d.HealthDocument},
        ("maintenance_unsafe",),
        (
            Parameter(
                "maintenance",
                "query",
                {"type": "boolean", "default": False},
                "With `true`, whether stopping this node now would cost availability: asks the "
                "other nodes, and 412 says what speaks against it.",
            ),
        ),
        is_open=True,
    ),
    Operation(
        "GET",
        paths.HEALTH_CLUSTER,
        "healthCluster",
        "Whether a majority of the voters answers this node.",
        {200: d.HealthDocument},
        ("no_quorum",),
        is_open=True,
    ),
    Operation(
        "GET",
        paths.METRICS,
        "metrics",
        "Counters in the Prometheus text format.",
        {200: "text/plain"},
        (),
        is_open=True,
    ),
    Operation(
        "GET",
        paths.OPENAPI,
        "openapi",
        "This document.",
        {200: "application/json"},
        (),
        is_open=True,
    ),
    Operation(
        "GET",
        paths.DOCS,
        "docs",
        "This document, as a page for people.",
        {200: "text/html"},
        (),
        is_open=True,
    ),
)
