"""The term a node is in and whom it voted for: durable before anybody hears of it.

A node that forgets its vote can vote twice in a term, and two leaders of one term lose data; so
each change is synced before `store` returns, terms only grow, and a vote once given in a term
stands. The file exists from the first start on: where it is missing beside a journal, the node
must not start (rule M4). Layout: docs/format.md, "Vote file".
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from metadata_raft.sealed import SealedFile, no_room, read_sealed
from metadata_raft.storage_errors import StorageDamagedError
from ring.filesystem import FileSystem
from ring.members import NodeId

_KIND = b"vote"
_VERSION = 1


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """A term, and the candidate this node voted for in it, if any."""

    term: int
    voted_for: NodeId | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Vote)


class VoteFile:
    """The durable vote; `current` is what is on the disk. Raft thread only."""

    def __init__(
        self, filesystem: FileSystem, path: str, current: Vote, make_room: Callable[[], bool]
    ) -> None:
        self._file = SealedFile(filesystem, path, _KIND, _VERSION, make_room)
        self.current = current

    @classmethod
    def create(
        cls, filesystem: FileSystem, path: str, *, make_room: Callable[[], bool] = no_room
    ) -> VoteFile:
        """A new node's: term 0, no vote; durable on return. `make_room` as for `SealedFile`."""
        vote_file = cls(filesystem, path, Vote(0, None), make_room)
        vote_file._write(vote_file.current)
        return vote_file

    @classmethod
    def load(
        cls, filesystem: FileSystem, path: str, *, make_room: Callable[[], bool] = no_room
    ) -> VoteFile | None:
        """None where there is no file. Raises StorageDamagedError."""
        body = read_sealed(filesystem, path, _KIND, _VERSION)
        if body is None:
            return None
        try:
            return cls(filesystem, path, _decoder.decode(body), make_room)
        except msgspec.DecodeError as error:
            raise StorageDamagedError(path, f"unreadable: {error}") from error

    def store(self, term: int, voted_for: NodeId | None) -> None:
        """Make a term and vote durable; nothing is written where they stand already.

        Raises StorageFailedError. AssertionError where Raft itself would break its promise: the
        term goes back, or the vote of a term is changed.
        """
        assert term >= self.current.term, f"term {term} after {self.current.term}"
        if term == self.current.term:
            if voted_for == self.current.voted_for:
                return
            assert self.current.voted_for is None, (
                f"vote for {voted_for} in term {term} after one for {self.current.voted_for}"
            )
        self._write(Vote(term, voted_for))

    def _write(self, vote: Vote) -> None:
        self._file.write(_encoder.encode(vote))
        self.current = vote
