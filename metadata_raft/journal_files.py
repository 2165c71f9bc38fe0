"""The files a journal consists of: appending, truncating, dropping, each in a crash-safe order.

Every method leaves the disk, at each instant, as a log that `storage.py` opens to what was durable
before the method or to what it was to become. They raise the OSError of the disk; what that means
is decided by `journal.py`. A file is preallocated, so that a sync has no size to write.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from metadata_raft.journal_format import (
    HEADER_SIZE,
    KEY_SIZE,
    FileHeader,
    encode_header,
    encode_record,
    record_size,
)
from metadata_raft.manifest import Base, ManifestFile
from metadata_raft.messages import LogEntry
from metadata_raft.suspect import is_disk_full
from ring.filesystem import Buffer, File, FileSystem


@dataclass
class Segment:
    """One file of the log; `size` is the number of its bytes that are durable."""

    number: int
    first_index: int
    key: bytes
    size: int


@dataclass
class LogContents:
    """A log as it was read from disk: entries, the offset of each, the segments they stand in."""

    entries: list[LogEntry] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


def segment_path(directory: str, number: int) -> str:
    return os.path.join(directory, f"journal-{number:012d}")


class JournalFiles:
    """The segments of one log, the last of them open for appending."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: str,
        contents: LogContents,
        *,
        manifest: ManifestFile,
        segment_bytes: int,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._manifest = manifest
        self._segment_bytes = segment_bytes
        self._entropy = entropy
        self._file: File | None = None
        self.segments = contents.segments
        self.offsets = contents.offsets
        """Where each durable entry stands in its segment, in the order of the log."""
        if self.segments:
            self._file = filesystem.open(self._path(self.segments[-1]))

    def fits(self, size_bytes: int) -> bool:
        """Whether records of so many bytes go into the last segment, or it is empty anyway."""
        size = self.segments[-1].size
        return size == HEADER_SIZE or size + size_bytes <= self._segment_bytes

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Write entries behind the durable ones and sync; records never span segments.

        After an error the durable ones are those in `offsets`.
        """
        segment = self.segments[-1]
        pieces: list[Buffer] = []
        offsets: list[int] = []
        end = segment.size
        for entry in entries:
            size = record_size(len(entry[0]))
            if end + size > self._segment_bytes and end > HEADER_SIZE:
                self._write(pieces, offsets, end)
                self.roll(entry[1])
                segment, pieces, offsets, end = self.segments[-1], [], [], HEADER_SIZE
            pieces += encode_record(segment.key, entry, segment.size)
            offsets.append(end)
            end += size
        self._write(pieces, offsets, end)

    def roll(self, first_index: int) -> None:
        """Begin the next segment; what the last one holds is durable already."""
        self._create(self.segments[-1].number + 1, first_index, begins_log=False)

    def begin(self, entries: Sequence[LogEntry]) -> None:
        """Replace the log: write the new one beside the old, then let the manifest switch."""
        old, self.segments, self.offsets = self.segments, [], []
        number = old[-1].number + 1 if old else self._manifest.current.first_segment
        _, index, term = entries[0]
        self._create(number, index, begins_log=True)
        self.append(entries)
        self._manifest.update(base=Base(index, term), first_segment=number)
        self._remove(old)

    def drop(self, count: int, base: Base) -> None:
        """Remove segments from the front; `base` is the first entry that stays."""
        self._manifest.update(base=base, first_segment=self.segments[count].number)
        dropped, self.segments = self.segments[:count], self.segments[count:]
        self._remove(dropped)

    def truncate(self, position: int, index: int) -> None:
        """Cut off the durable entries from a position on, which is not the first.

        It is durable before anything is written in their place: else a mixture of old and new
        records could be found. Later segments go first and one by one, so that at any time the
        rest is a whole log.
        """
        assert self._file is not None
        next_first_index = 0
        while self.segments[-1].first_index >= index:
            gone = self.segments.pop()
            next_first_index = gone.first_index
            self._file.close()
            self._filesystem.unlink(self._path(gone))
            self._filesystem.sync_directory(self._directory)
            self._file = self._filesystem.open(self._path(self.segments[-1]))
        if next_first_index != index:
            self.segments[-1].size = self.offsets[position]
        del self.offsets[position:]
        self.cut_back()

    def cut_back(self) -> None:
        """Let the last segment end with its durable entries; reserve its space again if there is
        any."""
        assert self._file is not None
        self._file.truncate(self.segments[-1].size)
        try:
            self._file.allocate(0, self._segment_bytes)
        except OSError as error:
            if not is_disk_full(error):
                raise
        self._file.datasync()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, pieces: list[Buffer], offsets: list[int], end: int) -> None:
        assert self._file is not None
        if pieces:
            segment = self.segments[-1]
            self._file.write_vector_at(segment.size, pieces)
            self._file.datasync()
            segment.size = end
            self.offsets += offsets

    def _create(self, number: int, first_index: int, *, begins_log: bool) -> None:
        """Make an empty segment, durable under its name, and append there from now on.

        It gets its name last: a segment that has its name has its header.
        """
        segment = Segment(number, first_index, self._entropy(KEY_SIZE), HEADER_SIZE)
        path = self._path(segment)
        header = FileHeader(number, first_index, segment.key, begins_log)
        file = self._filesystem.open(path + ".new", create=True)
        try:
            file.allocate(0, self._segment_bytes)
            file.write_at(0, encode_header(header, self._manifest.current.identity))
            file.datasync()
            self._filesystem.replace(path + ".new", path)
            self._filesystem.sync_directory(self._directory)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                self._filesystem.unlink(path + ".new")
            raise
        self.close()
        self._file = file
        self.segments.append(segment)

    def _remove(self, segments: list[Segment]) -> None:
        """Unlink what the manifest does not count any more; what a crash leaves goes at start."""
        for segment in segments:
            self._filesystem.unlink(self._path(segment))

    def _path(self, segment: Segment) -> str:
        return segment_path(self._directory, segment.number)
