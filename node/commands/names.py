"""Names on the command line: `BUCKET/PATH` in the cluster, and where files go locally. Pure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from node.errors import NodeError


class RemoteName(msgspec.Struct, frozen=True):
    """`BUCKET` or `BUCKET/PATH`; a path that ends with a slash is a folder."""

    bucket: str
    path: str

    def __str__(self) -> str:
        return f"{self.bucket}/{self.path}" if self.path else self.bucket

    @property
    def is_folder(self) -> bool:
        return self.path == "" or self.path.endswith("/")

    def below(self, relative: str) -> RemoteName:
        """The name `relative` within this folder."""
        folder = self.path if self.is_folder else self.path + "/"
        return RemoteName(self.bucket, folder + relative)


def parse(text: str) -> RemoteName:
    """Raises click.UsageError for a name without a bucket."""
    bucket, _, path = text.partition("/")
    if not bucket:
        raise click.UsageError(f"{text!r} is not a name like BUCKET/PATH.")
    if not _is_unicode(text):
        raise click.UsageError(f"{text!r} is not valid UTF-8, as all names in the cluster are.")
    return RemoteName(bucket, path)


def parse_file(text: str) -> RemoteName:
    """As `parse`, for a name that must be a file's."""
    name = parse(text)
    if name.is_folder:
        raise click.UsageError(f"{text!r} names no file; give BUCKET/PATH.")
    return name


def upload_target(source: str, target: RemoteName, *, several: bool) -> RemoteName:
    """Where one local file goes: below a folder under its own name, else the target itself."""
    if target.is_folder or several:
        return target.below(os.path.basename(source))
    return target


def files_below(folder: Path) -> tuple[list[tuple[Path, str]], list[Path]]:
    """The regular files below a folder with their relative names, sorted; and what is left out.

    Left out are links, which aren't followed, and what is no file (sockets, devices, pipes).
    Raises NodeError for a folder that can't be read and for a name the cluster can't have: what
    is stored is everything, or the command fails.
    """
    found: list[tuple[Path, str]] = []
    left_out: list[Path] = []
    for directory, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders.sort()
        left_out += [path for name in folders if (path := Path(directory, name)).is_symlink()]
        for name in sorted(files):
            path = Path(directory, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file():
                left_out.append(path)
            elif _is_unicode(relative):
                found.append((path, relative))
            else:
                raise NodeError(
                    f"The name {str(path)!r} is not valid UTF-8, as all names in the cluster are."
                )
    return found, left_out


def _raise_unreadable(error: OSError) -> NoReturn:
    raise NodeError(f"{error.filename} can't be read: {error.strerror}.") from error


def _is_unicode(text: str) -> bool:
    """Whether a name of the local system, where names are bytes, can be one of the cluster."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def local_target(name: RemoteName, target: str | None) -> Path:
    """Where a fetched file goes: into a folder that is there, else under the name given."""
    own = name.path.rsplit("/", 1)[-1]
    if target is None:
        return Path(own)
    path = Path(target)
    return path / own if target.endswith("/") or path.is_dir() else path


def safe_relative(path: str) -> Path:
    """A remote path as a relative local one. Raises ValueError for one that leads elsewhere.

    The cluster refuses such names; this guards against a server that is not what it says.
    """
    parts = path.split("/")
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise ValueError(f"{path!r} can't be a local file name")
    return Path(*parts)
