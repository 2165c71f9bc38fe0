"""Names on the command line, and where files go."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.commands import names
from node.commands.names import RemoteName
from node.errors import NodeError


def test_a_name_is_split_at_the_first_slash_only() -> None:
    """Everything after the bucket is the path, slashes included."""
    assert names.parse("b/x//y/") == RemoteName("b", "x//y/")
    assert names.parse("b") == RemoteName("b", "")
    with pytest.raises(click.UsageError):
        names.parse("/x")
    with pytest.raises(click.UsageError):
        names.parse_file("b/folder/")


def test_a_file_goes_into_a_folder_under_its_own_name() -> None:
    """`put a/f b/x/` makes b/x/f, `put a/f b/x` makes b/x, `put a/f b` makes b/f."""
    assert str(names.upload_target("a/f", names.parse("b/x/"), several=False)) == "b/x/f"
    assert str(names.upload_target("a/f", names.parse("b/x"), several=False)) == "b/x"
    assert str(names.upload_target("a/f", names.parse("b"), several=False)) == "b/f"
    assert str(names.upload_target("a/f", names.parse("b/x"), several=True)) == "b/x/f"


def test_folders_are_walked_in_order_without_following_links(tmp_path: Path) -> None:
    """Regular files, with relative names as they will be in the cluster; the rest is named."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "b/y", "b/c/x"):
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "z")
    (tmp_path / "folder-link").symlink_to(tmp_path / "b")
    os.mkfifo(tmp_path / "b" / "pipe")
    found, left_out = names.files_below(tmp_path)
    assert [relative for _, relative in found] == ["z", "b/y", "b/c/x"]
    assert {path.name for path in left_out} == {"link", "folder-link", "pipe"}


def test_a_folder_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    """A copy that silently lacks a folder is worse than none; here it went away in between."""
    with pytest.raises(NodeError, match="gone can't be read"):
        names.files_below(tmp_path / "gone")


def test_a_name_that_is_not_utf8_is_refused_in_words(tmp_path: Path) -> None:
    """On the command line as below a folder: local names are bytes, those of the cluster text."""
    (tmp_path / os.fsdecode(b"\xff")).write_text("")
    with pytest.raises(NodeError, match="not valid UTF-8"):
        names.files_below(tmp_path)
    with pytest.raises(click.UsageError, match="not valid UTF-8"):
        names.parse(os.fsdecode(b"bucket/\xff"))


def test_a_fetched_file_goes_into_a_folder_that_is_there(tmp_path: Path) -> None:
    """As with cp: an existing folder takes the file under its own name."""
    name = RemoteName("b", "x/y.bin")
    assert names.local_target(name, None) == Path("y.bin")
    assert names.local_target(name, str(tmp_path)) == tmp_path / "y.bin"
    assert names.local_target(name, f"{tmp_path}/new") == tmp_path / "new"
    assert names.local_target(name, "new/") == Path("new/y.bin")


@given(st.text(alphabet="./a\0", max_size=12))
def test_no_remote_name_leads_out_of_the_folder(path: str) -> None:
    """Whatever a server answers, files land below the folder that was asked for."""
    try:
        relative = names.safe_relative(path)
    except ValueError:
        return
    assert not relative.is_absolute()
    assert ".." not in relative.parts
    assert relative.as_posix() == path
