"""`holdfast get`: a file appears under its name when it is whole and right, or not at all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from gateway.client import GatewayClient, IntegrityError, UnreachableError
from node.commands import output
from node.commands.get import fetch
from node.commands.names import RemoteName
from node.errors import NodeError

NAME = RemoteName("bucket", "folder/file")


class FakeDownload:
    etag = "e"

    def __init__(self, pieces: list[bytes], failure: Exception | None) -> None:
        self._pieces, self._failure = pieces, failure
        self.size_bytes = sum(map(len, pieces))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._failure is not None:
            raise self._failure


class FakeClient:
    def __init__(self, pieces: list[bytes], failure: Exception | None = None) -> None:
        self._download = FakeDownload(pieces, failure)

    @asynccontextmanager
    async def get(self, bucket: str, path: str) -> AsyncIterator[FakeDownload]:
        assert (bucket, path) == (NAME.bucket, NAME.path)
        yield self._download


async def fetched(client: FakeClient, local: Path) -> None:
    with output.Transfers("get") as transfers:
        await fetch(cast("GatewayClient", client), NAME, local, transfers)


async def test_a_whole_file_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    """Folders are made as needed; nothing else is left behind."""
    local = tmp_path / "a" / "b" / "file"
    await fetched(FakeClient([b"old"]), local)
    await fetched(FakeClient([b"new", b"er"]), local)
    assert local.read_bytes() == b"newer"
    assert os.listdir(local.parent) == ["file"]


@pytest.mark.parametrize("failure", [IntegrityError("wrong"), UnreachableError("broke off")])
async def test_a_bad_download_leaves_what_was_there(tmp_path: Path, failure: Exception) -> None:
    """Neither wrong bytes nor half a file ever stand under the name, and no part remains."""
    local = tmp_path / "file"
    local.write_bytes(b"precious")
    with pytest.raises(type(failure)):
        await fetched(FakeClient([b"half"], failure), local)
    assert local.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["file"]


async def test_a_target_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A folder in the way of the file: one sentence that names it."""
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "inside").write_text("")
    with pytest.raises(NodeError, match="can't be written"):
        await fetched(FakeClient([b"x"]), tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """A file in the way of the folder: in the cluster `a` and `a/b` may both be files."""
    (tmp_path / "a").write_text("")
    with pytest.raises(NodeError, match="can't be written"):
        await fetched(FakeClient([b"x"]), tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == ["a"]


async def test_a_name_as_long_as_names_may_be_is_fetched(tmp_path: Path) -> None:
    """255 bytes of three-byte letters: the temporary name fits as well."""
    local = tmp_path / ("\u4e00" * 85)
    await fetched(FakeClient([b"x"]), local)
    assert local.read_bytes() == b"x"
