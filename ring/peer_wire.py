"""What peers say to each other over HTTP: paths, headers, documents and codes. Pure.

Everything a request asks for stands in its method and path, so that signing these signs the
request; a chunk's body is named by the id in the path, other bodies by their digest. The protocol
is described in docs/format.md.

    POST /peer/1/sessions                               open a session (signed requests only)
    PUT  /peer/1/chunks/<id>/<epoch>/<purpose>/<touch>/<codec>/<plain length>
    POST /peer/1/puts                                   SmallPuts in, a PutAnswer for each out
    GET  /peer/1/chunks/<id>                            payload as stored, whole
    POST /peer/1/gets                                   ids in, small payloads out, one by one
    GET  /peer/1/ranges/<id>/<start>/<end>              plaintext, verified by the sender
    POST /peer/1/stat                                   ids in, ChunkState for each out
    POST /peer/1/touch/<epoch>/<touch>                  ids in, a flag for each out
    POST /peer/1/confirm/<epoch>                        ids with touches in, a flag for each out
    GET  /peer/1/ids/<after, or ->/<limit>              ids held, in order
    GET  /peer/1/digests/<epoch>/<asking node>          fingerprints of the partitions both own
    GET  /peer/1/slice-digests/<epoch>/<partition>      fingerprints of a partition's slices
    GET  /peer/1/partition-ids/<epoch>/<partition>/<slice, or ->/<after, or ->    ids, in order
    GET  /peer/1/node                                   PeerStatus
    POST /peer/1/scrub                                  begin a scrub; ScrubAnswer
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated

import msgspec

from ring.digests import SLICE_COUNT
from ring.interfaces import CHUNK_ID_SIZE, Codec
from ring.members import PARTITION_COUNT, NodeId

PREFIX = "/peer/1"

CLUSTER_HEADER = "X-Holdfast-Cluster"
CREDENTIALS_HEADER = "X-Holdfast-Credentials"
CODEC_HEADER = "X-Holdfast-Codec"
PLAIN_LENGTH_HEADER = "X-Holdfast-Plain-Length"
DIGEST_HEADER = "X-Holdfast-Digest"

SLICE_SIZE = 1024 * 1024
"""Bytes of a chunk handed to a connection at a time; each waits until the last has left."""

BATCH_LIMIT = 4096
"""Ids in one stat, touch or confirm."""

TOUCH_SIZE = 8
"""Bytes of a touch behind its id, most significant first."""

BODY_LIMIT = 256 * 1024
"""Bytes of a body that is no chunk: a full batch of ids with touches is 160 KiB."""

IDS_LIMIT = 4096

SMALL_PUT_LIMIT = 64 * 1024
"""Payloads up to this share requests; larger ones are worth a request of their own."""

PUT_BATCH_LIMIT = 64
PUT_BATCH_SIZE_LIMIT = 1024 * 1024
"""Payloads in one such request, and their bytes; a first one always fits."""

PUT_BATCH_BODY_LIMIT = PUT_BATCH_SIZE_LIMIT + SMALL_PUT_LIMIT + PUT_BATCH_LIMIT * 256
"""Bytes of its body: what a target adds to a payload is less than 256."""


GET_BATCH_LIMIT = 64
GET_BATCH_BODY_LIMIT = 512 * 1024
"""Small chunks fetched by one request, and the bytes of its answer: what a buffer of the middle
size holds."""

GET_BATCH_SIZE_LIMIT = GET_BATCH_BODY_LIMIT - GET_BATCH_LIMIT * 32
"""Their payloads together; the form around one adds less than 32 bytes."""


class Purpose(enum.StrEnum):
    """Why a chunk is sent, which decides who may take it and what its touch becomes."""

    OWNER = "owner"
    """A client's write: the receiver is an owner, and raises the touch to its own generation."""
    HANDOFF = "handoff"
    """The same, to a node that stands in for an owner."""
    REPAIR = "repair"
    """A copy of an old write: the receiver is an owner, and takes the touch as it is (D10)."""


TOUCH_MAX = 2**62
"""Far above what a generation can reach, and within what SQLite stores."""

_Number = Annotated[int, msgspec.Meta(ge=0, le=TOUCH_MAX)]


class PutTarget(msgspec.Struct, frozen=True, array_like=True):
    """All a chunk's sender says of it."""

    chunk_id: Annotated[bytes, msgspec.Meta(min_length=CHUNK_ID_SIZE, max_length=CHUNK_ID_SIZE)]
    epoch: _Number
    purpose: Purpose
    touch: _Number
    codec: Codec
    plain_length: _Number

    def path(self) -> str:
        return (
            f"{PREFIX}/chunks/{self.chunk_id.hex()}/{self.epoch}/{self.purpose.value}/{self.touch}"
            f"/{self.codec.value}/{self.plain_length}"
        )

    @classmethod
    def parse(cls, parts: Sequence[str]) -> PutTarget:
        """Raises MalformedError. `parts` are the path's, from the id on."""
        try:
            identifier, epoch, purpose, touch, codec, plain_length = parts
            return cls(
                chunk_id=parse_chunk_id(identifier),
                epoch=parse_number(epoch),
                purpose=Purpose(purpose),
                touch=parse_number(touch),
                codec=Codec(parse_number(codec)),
                plain_length=parse_number(plain_length),
            )
        except ValueError as error:
            raise MalformedError(f"no target of a chunk: {error}") from None


class SmallPut(msgspec.Struct, frozen=True, array_like=True):
    """A chunk among others. Received, its payload is a view on the request's buffer."""

    target: PutTarget
    payload: memoryview


class SmallGet(msgspec.Struct, frozen=True, array_like=True):
    """A chunk among others that were asked for. Received, its payload is a view on the answer."""

    codec: Codec
    plain_length: _Number
    payload: memoryview


class MalformedError(ValueError):
    """A request that no node of this version sends."""


class ChunkState(msgspec.Struct, frozen=True, array_like=True):
    """What a peer says of a chunk that it holds."""

    plain_length: int
    healthy: bool
    touch: int | None


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A node's own view of itself."""

    node_id: NodeId
    epoch: int
    generation: int
    chunks: int
    stored_bytes: int
    writable: bool
    requests_active: int
    settled: bool = False
    """Whether it found here all that the epoch wants here, and nothing that it wants elsewhere; see
    `ring/repair.py: RepairStatus` and `ring/moves.py: MoverStatus`."""
    figures: dict[str, float] = {}
    """What it shows of itself, by name with the unit last; for people, no decision hangs on it."""
    clients_active: bool = False
    """Whether it is serving clients: others then fetch from it with restraint."""


class ScrubAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A scrub begins soon."""

    passes: int
    """What the node's figure `scrub_passes` will be when it has ended."""


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a new session; `proof` covers the client's challenge."""

    boot_nonce: bytes
    number: int
    proof: bytes


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer that is no success."""

    code: str
    detail: str
    epoch: int = 0
    """With `stale_epoch`: the epoch the receiver is at."""


class PutAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What became of one chunk of several."""

    existed: bool = False
    refusal: Refusal | None = None
    """Why it was not taken, None where it is durable."""


STATUS_OF_CODE = {
    "malformed": 400,
    "bad_signature": 401,
    "unknown_session": 401,
    "replayed": 401,
    "wrong_cluster": 401,
    "chunk_not_found": 404,
    "chunk_damaged": 404,
    "body_timeout": 408,
    "stale_epoch": 409,
    "not_owner": 409,
    "body_too_large": 413,
    "chunk_rejected": 422,
    "store_failed": 500,
    "overloaded": 503,
    "store_full": 507,
}
"""Every code of a Refusal and its HTTP status."""


def chunk_path(chunk_id: bytes) -> str:
    return f"{PREFIX}/chunks/{chunk_id.hex()}"


def range_path(chunk_id: bytes, start: int, end: int) -> str:
    return f"{PREFIX}/ranges/{chunk_id.hex()}/{start}/{end}"


def touch_path(epoch: int, touch: int) -> str:
    return f"{PREFIX}/touch/{epoch}/{touch}"


def confirm_path(epoch: int) -> str:
    return f"{PREFIX}/confirm/{epoch}"


def ids_path(after: bytes, limit: int) -> str:
    return f"{PREFIX}/ids/{after.hex() or '-'}/{limit}"


def digests_path(epoch: int, asking: NodeId) -> str:
    return f"{PREFIX}/digests/{epoch}/{asking}"


def slice_digests_path(epoch: int, partition: int) -> str:
    return f"{PREFIX}/slice-digests/{epoch}/{partition}"


def partition_ids_path(epoch: int, partition: int, number: int | None, after: bytes) -> str:
    part = "-" if number is None else str(number)
    return f"{PREFIX}/partition-ids/{epoch}/{partition}/{part}/{after.hex() or '-'}"


def parse_partition(text: str) -> int:
    """Raises MalformedError."""
    return _parse_below(text, PARTITION_COUNT)


def parse_slice(text: str) -> int | None:
    """Raises MalformedError. None: the whole partition."""
    return None if text == "-" else _parse_below(text, SLICE_COUNT)


def _parse_below(text: str, limit: int) -> int:
    number = parse_number(text)
    if number >= limit:
        raise MalformedError(f"{number} is not below {limit}")
    return number


def parse_after(text: str) -> bytes:
    return b"" if text == "-" else parse_chunk_id(text)


def parse_chunk_id(text: str) -> bytes:
    """Raises MalformedError unless it is the lower-case hexadecimal form of an id."""
    if len(text) != 2 * CHUNK_ID_SIZE or not _HEXADECIMAL.issuperset(text):
        raise MalformedError(f"{text[:80]!r} is no chunk id")
    return bytes.fromhex(text)


_HEXADECIMAL = frozenset("0123456789abcdef")


def parse_number(text: str) -> int:
    """Raises MalformedError unless it is a plain decimal number below 2**63."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise MalformedError(f"{text[:80]!r} is no number")
    return int(text)


_puts: msgspec.msgpack.Decoder[list[SmallPut]] = msgspec.msgpack.Decoder(
    Annotated[list[SmallPut], msgspec.Meta(min_length=1, max_length=PUT_BATCH_LIMIT)]
)


def decode_puts(body: memoryview) -> list[SmallPut]:
    """Raises MalformedError for what is no batch of chunks. The payloads are views on `body`."""
    try:
        return _puts.decode(body)
    except msgspec.DecodeError as error:
        raise MalformedError(f"no chunks: {error}") from None


_gets: msgspec.msgpack.Decoder[list[SmallGet | None]] = msgspec.msgpack.Decoder(
    list[SmallGet | None]
)


def decode_gets(body: memoryview) -> list[SmallGet | None]:
    """Raises msgspec.DecodeError for what is no answer. The payloads are views on `body`."""
    return _gets.decode(body)


def encode_ids(chunk_ids: Sequence[bytes]) -> bytes:
    return b"".join(chunk_ids)


def decode_ids(body: bytes, limit: int) -> list[bytes]:
    """Raises MalformedError for more than `limit` ids, or a part of one."""
    count, rest = divmod(len(body), CHUNK_ID_SIZE)
    if rest or count > limit:
        raise MalformedError(f"{len(body)} bytes are no list of at most {limit} chunk ids")
    return [body[at : at + CHUNK_ID_SIZE] for at in range(0, len(body), CHUNK_ID_SIZE)]


def encode_touches(touches: Sequence[tuple[bytes, int]]) -> bytes:
    return b"".join(chunk_id + touch.to_bytes(TOUCH_SIZE, "big") for chunk_id, touch in touches)


def decode_touches(body: bytes, limit: int) -> list[tuple[bytes, int]]:
    """Raises MalformedError for more than `limit` ids with touches, or a part of one."""
    size = CHUNK_ID_SIZE + TOUCH_SIZE
    count, rest = divmod(len(body), size)
    if rest or count > limit:
        raise MalformedError(f"{len(body)} bytes are no list of at most {limit} ids with touches")
    touches = [
        (body[at : at + CHUNK_ID_SIZE], int.from_bytes(body[at + CHUNK_ID_SIZE : at + size], "big"))
        for at in range(0, len(body), size)
    ]
    if any(touch > TOUCH_MAX for _, touch in touches):
        raise MalformedError("a touch is beyond all generations")
    return touches
