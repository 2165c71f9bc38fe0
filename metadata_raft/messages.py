"""What Raft peers say to each other: typed, bounded, encoded with msgpack, never pickled.

One message is one msgpack array whose first element is the number of its type (docs/format.md,
"Raft messages"). Decoding checks every type; whatever does not fit closes the connection. The
sender's node id is not part of a message: the transport knows it from the handshake.
"""

from __future__ import annotations

import msgspec

from metadata_raft.commands import ENTRY_SIZE_LIMIT

APPEND_SIZE_LIMIT = 1024 * 1024
"""Bytes of entries in one Append; one entry may go over by itself."""

MESSAGE_SIZE_LIMIT = APPEND_SIZE_LIMIT + 2 * ENTRY_SIZE_LIMIT
"""Bytes of one encoded message: the fullest Append, and room for the envelope."""

LogEntry = tuple[bytes, int, int]
"""The bytes of the entry with their type byte, its index, its term."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


class Append(_Message, frozen=True, tag=1):
    """Leader to member: entries after `previous_index`, or none as a heartbeat."""

    term: int
    commit_index: int
    previous_index: int
    previous_term: int
    time_ms: int
    """State time by the leader's clock (rule M5); lets members say how long a request may live."""
    entries: list[LogEntry]


class AppendReply(_Message, frozen=True, tag=2):
    """Member to leader; `success` means: durable here up to `next_index - 1`."""

    term: int
    next_index: int
    success: bool
    reset: bool
    """Send from `next_index` on: what came before it did not fit."""
    clock_ms: int
    """The member's wall clock, an input of state time; decides nothing by itself."""


class RequestVote(_Message, frozen=True, tag=3):
    term: int
    last_index: int
    last_term: int
    transfer: bool
    """The leader itself asked for this election; nobody has to wait for its silence."""


class Vote(_Message, frozen=True, tag=4):
    term: int


class PreVote(_Message, frozen=True, tag=5):
    """Would you vote for me in `term`? Changes nothing at the one who is asked."""

    term: int
    last_index: int
    last_term: int


class PreVoteReply(_Message, frozen=True, tag=6):
    term: int
    """Of the question where granted, else the term of the one who refuses."""
    granted: bool


class TimeoutNow(_Message, frozen=True, tag=7):
    """The leader hands over: stand for election at once."""

    term: int


class Forward(_Message, frozen=True, tag=8):
    """Member to leader: encoded proposals for the log."""

    proposals: list[bytes]


class ForwardRefused(_Message, frozen=True, tag=9):
    """The receiver did not take these requests; nothing happened to them there."""

    request_ids: list[bytes]
    overloaded: bool
    """Its queue is full; otherwise it is no leader."""


class Confirm(_Message, frozen=True, tag=10):
    """Leader to voters: is `term` still yours? (ReadIndex, rule M3)"""

    term: int
    round: int


class Confirmed(_Message, frozen=True, tag=11):
    term: int
    round: int


class ReadRequest(_Message, frozen=True, tag=12):
    """Member to leader: an index that every write completed before this message has reached."""

    term: int
    round: int


class ReadReply(_Message, frozen=True, tag=13):
    round: int
    index: int
    """0: the receiver is no leader, or not yet able to answer."""


class StateNeeded(_Message, frozen=True, tag=14):
    """Leader to member: my log begins with this entry; unless you have it, download the state
    (rule M6)."""

    term: int
    first_index: int
    first_term: int
    time_ms: int
    """As in `Append`."""


class StateRequest(_Message, frozen=True, tag=15):
    """Lagging node to a member: send me your state, or go on sending it (rule M6)."""

    download: int
    """A random number of the receiver's: pieces of an earlier attempt don't fit."""
    credit: int
    """How many pieces, counted from the first, the receiver takes for now."""


class StatePiece(_Message, frozen=True, tag=16):
    """A piece of the state; the first is its description, the last its digest."""

    download: int
    number: int
    data: bytes
    last: bool


class StateRefused(_Message, frozen=True, tag=17):
    """No state from here now, or no more of it: ask again later, or somebody else."""

    download: int
    reason: str


Message = (
    Append
    | AppendReply
    | RequestVote
    | Vote
    | PreVote
    | PreVoteReply
    | TimeoutNow
    | Forward
    | ForwardRefused
    | Confirm
    | Confirmed
    | ReadRequest
    | ReadReply
    | StateNeeded
    | StateRequest
    | StatePiece
    | StateRefused
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_message(data: bytes | memoryview) -> Message:
    """Raises msgspec.DecodeError or msgspec.ValidationError on bytes that are no message."""
    try:
        return _decoder.decode(data)
    except UnicodeError as error:
        raise msgspec.DecodeError(str(error)) from error
