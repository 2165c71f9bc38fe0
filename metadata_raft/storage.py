"""Opening a node's Raft directory: what a crash may leave is put right, all else is refused (M4).

    manifest          the root: whose directory, where the journal begins   manifest.py
    vote              term and vote                                         vote_file.py
    journal-<number>  the log                                               journal.py
    reserve           space for the day the disk is full                    reserve.py
    suspect           a write or sync failed here
    *.new             unfinished; removed at start

A crash may leave unfinished files, segments that compaction or a reset had done with, a torn tail
that nobody was promised, and a downloaded state whose installation was decided but not finished.
Everything else (a missing file, a broken checksum, a gap) means that promises may be forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from metadata_raft.configuration import Configuration
from metadata_raft.errors import StateMismatchError
from metadata_raft.journal import Journal, JournalSettings
from metadata_raft.journal_files import JournalFiles, LogContents, Segment, segment_path
from metadata_raft.journal_format import FileHeader, decode_contents, decode_header
from metadata_raft.manifest import Base, Identity, Manifest, ManifestFile, PendingInstall
from metadata_raft.reserve import Reserve
from metadata_raft.storage_errors import StorageDamagedError, StorageFailedError
from metadata_raft.suspect import refuse_suspect
from metadata_raft.vote_file import VoteFile
from ring.filesystem import FileSystem, read_file

MANIFEST_NAME = "manifest"
VOTE_NAME = "vote"
RESERVE_NAME = "reserve"
_SEGMENT_PREFIX = "journal-"
_UNFINISHED_SUFFIX = ".new"

INCOMING_SUFFIX = ".incoming"
OUTGOING_SUFFIX = ".outgoing"
BACKUP_SUFFIX = OUTGOING_SUFFIX + ".backup"
"""Of the names of a state on its way, behind the database's."""

STATE_SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database; of the old one, they must not meet the new one."""


@dataclass
class Storage:
    """An opened Raft directory."""

    filesystem: FileSystem
    directory: str
    manifest: ManifestFile
    vote: VoteFile
    journal: Journal

    def close(self) -> None:
        self.journal.close()


def open_storage(
    filesystem: FileSystem,
    directory: str,
    identity: Identity,
    *,
    configuration: Configuration | None = None,
    settings: JournalSettings | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Storage:
    """Open the directory of a node, or make it where it is empty; the directory itself exists.

    `configuration` goes into a new manifest. A new journal has no entries. Raises
    StorageUnusableError, which says what the operator can do, and StorageFailedError.
    """
    try:
        return _open(
            filesystem,
            directory,
            identity,
            configuration=configuration or Configuration(),
            settings=settings or JournalSettings(),
            entropy=entropy,
        )
    except OSError as error:
        raise StorageFailedError(f"{directory} could not be opened: {error}") from error


def _open(
    filesystem: FileSystem,
    directory: str,
    identity: Identity,
    *,
    configuration: Configuration,
    settings: JournalSettings,
    entropy: Callable[[int], bytes],
) -> Storage:
    refuse_suspect(filesystem, directory)
    names = filesystem.names(directory)
    for name in names:
        if name.endswith(_UNFINISHED_SUFFIX):
            filesystem.unlink(os.path.join(directory, name))
    # After the death of a process, names and bytes it never synced are still seen. They are about
    # to be relied upon, so they are made durable first.
    filesystem.sync_directory(directory)
    numbers = sorted(
        int(name.removeprefix(_SEGMENT_PREFIX))
        for name in names
        if name.startswith(_SEGMENT_PREFIX) and name.removeprefix(_SEGMENT_PREFIX).isdigit()
    )
    reserve = Reserve(filesystem, os.path.join(directory, RESERVE_NAME), settings.reserve_bytes)
    manifest, vote = _open_roots(
        filesystem,
        directory,
        identity,
        configuration,
        has_journal=bool(numbers),
        make_room=reserve.release,
    )
    _remove_copies(filesystem, directory, names, manifest.current.pending)
    contents = _read_log(filesystem, directory, identity, manifest.current, numbers)
    if contents.entries and vote.current.term < contents.entries[-1][2]:
        raise StorageDamagedError(
            os.path.join(directory, VOTE_NAME),
            f"its term {vote.current.term} is older than the journal's {contents.entries[-1][2]}",
        )
    reserve.restore()
    files = JournalFiles(
        filesystem,
        directory,
        contents,
        manifest=manifest,
        segment_bytes=settings.segment_bytes,
        entropy=entropy,
    )
    if contents.segments:
        # Removes a torn tail before anything can be written in its place, and makes durable what
        # a process that died had written and not synced.
        files.cut_back()
    journal = Journal(
        filesystem,
        directory,
        contents.entries,
        files=files,
        vote=vote,
        reserve=reserve,
        settings=settings,
    )
    storage = Storage(filesystem, directory, manifest, vote, journal)
    finish_install(storage, reset=journal.reset)
    return storage


def _open_roots(
    filesystem: FileSystem,
    directory: str,
    identity: Identity,
    configuration: Configuration,
    *,
    has_journal: bool,
    make_room: Callable[[], bool],
) -> tuple[ManifestFile, VoteFile]:
    """Manifest and vote. They are made in this order, before the first segment."""
    manifest_path = os.path.join(directory, MANIFEST_NAME)
    vote_path = os.path.join(directory, VOTE_NAME)
    vote = VoteFile.load(filesystem, vote_path, make_room=make_room)
    manifest = ManifestFile.load(filesystem, manifest_path, identity, make_room=make_room)
    if manifest is None:
        if has_journal or vote is not None:
            raise StorageDamagedError(manifest_path, "it is missing beside a journal or vote")
        manifest = ManifestFile.create(
            filesystem,
            manifest_path,
            Manifest(
                identity=identity,
                base=Base(0, 0),
                first_segment=1,
                configuration=configuration,
            ),
            make_room=make_room,
        )
    if vote is None:
        if has_journal:
            raise StorageDamagedError(vote_path, "it is missing beside a journal")
        vote = VoteFile.create(filesystem, vote_path, make_room=make_room)
    return manifest, vote


def _remove_copies(
    filesystem: FileSystem, directory: str, names: list[str], pending: PendingInstall | None
) -> None:
    """Copies of states, sent or received, that a former process did not get done with."""
    for name in names:
        path = os.path.join(directory, name)
        unwanted = pending is None or path != pending.source
        if OUTGOING_SUFFIX in name or (INCOMING_SUFFIX in name and unwanted):
            filesystem.unlink(path)


def _read_log(
    filesystem: FileSystem,
    directory: str,
    identity: Identity,
    manifest: Manifest,
    numbers: list[int],
) -> LogContents:
    """Read what counts and remove what doesn't."""
    contents = LogContents()
    if manifest.base.index == 0:
        # No log has begun: a first segment that is there was not finished.
        _remove(filesystem, directory, numbers)
        return contents
    _remove(filesystem, directory, [n for n in numbers if n < manifest.first_segment])
    counting = [number for number in numbers if number >= manifest.first_segment]
    for number in counting:
        path = segment_path(directory, number)
        data = read_file(filesystem, path)
        header = decode_header(data, identity, path)
        if header.begins_log and number != manifest.first_segment:
            # A reset that was not finished: the manifest did not switch to it.
            _remove(filesystem, directory, [number])
            continue
        _check_order(path, header, contents, manifest, number)
        found = decode_contents(data, header, path)
        contents.entries += found.entries
        contents.offsets += found.offsets
        contents.segments.append(Segment(number, header.first_index, header.key, found.end))
    if not contents.entries or contents.entries[0][1:] != (manifest.base.index, manifest.base.term):
        path = segment_path(directory, manifest.first_segment)
        raise StorageDamagedError(path, f"the journal does not begin at entry {manifest.base}")
    return contents


def _check_order(
    path: str, header: FileHeader, contents: LogContents, manifest: Manifest, number: int
) -> None:
    """Each segment continues the one before it, and none is missing."""
    expected_number = manifest.first_segment + len(contents.segments)
    expected_index = manifest.base.index + len(contents.entries)
    if (header.number, header.first_index) != (expected_number, expected_index):
        raise StorageDamagedError(
            path,
            f"it is segment {header.number} from entry {header.first_index} on, where segment "
            f"{expected_number} from {expected_index} on belongs",
        )
    if number != header.number:
        raise StorageDamagedError(path, f"it is segment {header.number} under another name")


def _remove(filesystem: FileSystem, directory: str, numbers: list[int]) -> None:
    for number in numbers:
        filesystem.unlink(segment_path(directory, number))


# --- installing a downloaded state (rule M6) ---------------------------------------------------


def begin_install(
    storage: Storage, *, source: str, target: str, base: Base, configuration: Configuration
) -> None:
    """Decide that `source` becomes the state `target`: from here on it will, crash or not.

    `source` is verified and durable, in the directory of `target`. `base` is the last entry it
    holds, `configuration` the one in force there. Then close the state machine and call
    `finish_install`.
    """
    pending = PendingInstall(source, target, base)
    storage.manifest.update(pending=pending, configuration=configuration)


def finish_install(storage: Storage, *, reset: Callable[[int, int], None]) -> bool:
    """Carry out a decided installation; False where there is none. The state must be closed.

    `reset` is the journal's, or goes through to it. May be repeated after a crash at any instant.
    """
    pending = storage.manifest.current.pending
    if pending is None:
        return False
    filesystem = storage.filesystem
    reset(pending.base.index, pending.base.term)
    directory = os.path.dirname(pending.target)
    if filesystem.exists(pending.source):
        for suffix in STATE_SIDE_FILES:
            if filesystem.exists(pending.target + suffix):
                filesystem.unlink(pending.target + suffix)
        # SQLite would apply an old write-ahead log to the new database.
        filesystem.sync_directory(directory)
        filesystem.replace(pending.source, pending.target)
        filesystem.sync_directory(directory)
    storage.manifest.update(pending=None)
    return True


def check_state(journal: Journal, *, applied_index: int, applied_term: int) -> None:
    """Check that journal and state belong together, at start, before anything is applied.

    Nothing is applied that was not flushed before. So a state that is ahead of the journal shows
    that durable entries are missing, even where the damage looked like a torn tail. Raises
    StorageDamagedError; StateMismatchError where the two contradict each other.
    """
    last_index = journal.last_index if len(journal) else 0
    if applied_index > last_index:
        raise StorageDamagedError(
            journal.directory,
            f"the state holds entry {applied_index}, the journal ends with {last_index}",
        )
    if len(journal) and applied_index < journal.first_index and journal.first_index > 1:
        raise StorageDamagedError(
            journal.directory,
            f"the state ends with entry {applied_index}, the journal begins with "
            f"{journal.first_index}",
        )
    term = journal.term_at(applied_index)
    if term is not None and term != applied_term:
        raise StateMismatchError(
            f"entry {applied_index} has term {term} in the journal, {applied_term} in the state"
        )
