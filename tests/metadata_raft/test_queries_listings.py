"""Listings: keys in byte order, folded at a delimiter, page by page."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_raft.commands import (
    DeleteFile,
)
from metadata_raft.listing import after_prefix, common_prefix, list_page
from metadata_raft.readers import ReaderPool
from tests.metadata_raft.replica import (
    ADMIN,
    Replica,
    put_inline,
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    yield replica
    replica.close()


TREE = ["a", "a-b", "a.txt", "a/1", "a/2", "a/b/3", "b", "c/1", "c0", "d/é/x", "é", "😀/1"]


def fill(replica: Replica, paths: list[str]) -> None:
    replica.apply([replica.propose(put_inline("default", path, b"x")) for path in paths])


def pages(
    replica: Replica, *, prefix: str = "", delimiter: str = "", limit: int = 1000
) -> tuple[list[str], list[str], int]:
    """All files and prefixes of a listing, and on how many pages they came."""
    files: list[str] = []
    prefixes: list[str] = []
    cursor, count = None, 0
    while True:
        with replica.snapshot() as snapshot:
            page = snapshot.files("default", prefix, delimiter, cursor, limit)
        assert len(page.files) + len(page.prefixes) <= limit
        files += [file.path for file in page.files]
        prefixes += page.prefixes
        count += 1
        if page.next_cursor is None:
            return files, prefixes, count
        assert len(page.files) + len(page.prefixes) == limit
        cursor = page.next_cursor


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_a_listing_is_in_byte_order_whatever_the_pages(replica: Replica, limit: int) -> None:
    """Keys come in the order of their UTF-8 bytes, each once, without inline contents."""
    fill(replica, TREE)
    files, prefixes, count = pages(replica, limit=limit)
    assert files == sorted(TREE, key=str.encode)
    assert prefixes == []
    assert count == -(-len(TREE) // limit)
    with replica.snapshot() as snapshot:
        assert {file.inline for file in snapshot.files("default").files} == {None}


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_a_delimiter_folds_what_lies_below(replica: Replica, limit: int) -> None:
    """Each common prefix comes once, on one page, ending in the delimiter."""
    fill(replica, TREE)
    files, prefixes, _ = pages(replica, delimiter="/", limit=limit)
    assert files == ["a", "a-b", "a.txt", "b", "c0", "é"]
    assert prefixes == ["a/", "c/", "d/", "😀/"]
    files, prefixes, _ = pages(replica, prefix="a/", delimiter="/", limit=limit)
    assert (files, prefixes) == (["a/1", "a/2"], ["a/b/"])
    files, prefixes, _ = pages(replica, prefix="a", delimiter="/", limit=limit)
    assert (files, prefixes) == (["a", "a-b", "a.txt"], ["a/"])
    assert pages(replica, prefix="x", delimiter="/", limit=limit) == ([], [], 1)


def test_a_cursor_outlives_what_it_names(replica: Replica) -> None:
    """A page goes on behind the last key, also when that has been deleted meanwhile."""
    fill(replica, TREE)
    replica.do(DeleteFile(bucket="default", path="a-b", actor=ADMIN))
    with replica.snapshot() as snapshot:
        page = snapshot.files("default", "", "/", "a-b", 2)
        assert [file.path for file in page.files] == ["a.txt"]
        assert (page.prefixes, page.next_cursor) == (("a/",), "a/")


@given(
    paths=st.sets(st.text(alphabet="ab-/é\U0010ffff", min_size=1, max_size=5), max_size=12),
    prefix=st.text(alphabet="ab-/\U0010ffff", max_size=2),
    delimiter=st.sampled_from(["", "/", "-", "a", "b-"]),
    limit=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_listing_equals_its_definition(
    paths: set[str], prefix: str, delimiter: str, limit: int
) -> None:
    """For any keys: those below the prefix, folded at the first delimiter, in order, each once."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE files (bucket_id, path, PRIMARY KEY (bucket_id, path))")
    connection.executemany("INSERT INTO files VALUES (1, ?)", [(path,) for path in paths])
    expected: list[str] = []
    for path in sorted(paths, key=str.encode):
        if path.startswith(prefix):
            found = path.find(delimiter, len(prefix)) if delimiter else -1
            key = path if found < 0 else path[: found + len(delimiter)]
            if key not in expected[-1:]:
                expected.append(key)
    given_keys: list[str] = []
    cursor = None
    for _ in range(len(paths) + 1):
        rows, prefixes, cursor = list_page(
            connection.execute,
            "SELECT path FROM files WHERE bucket_id = ?",
            bucket_id=1,
            prefix=prefix,
            delimiter=delimiter,
            cursor=cursor,
            limit=limit,
        )
        given_keys += sorted([*(row[0] for row in rows), *prefixes], key=str.encode)
        if cursor is None:
            break
    connection.close()
    assert given_keys == expected


@given(prefix=st.text(min_size=1, max_size=4), tail=st.text(max_size=3), other=st.text(max_size=5))
def test_after_prefix_separates(prefix: str, tail: str, other: str) -> None:
    """Everything with the prefix is below it; everything else above the prefix is at or above."""
    assert after_prefix("a\ud7ff") == "a\ue000"
    above = after_prefix(prefix)
    if above is None:
        assert set(prefix) == {"\U0010ffff"}
    else:
        assert prefix + tail < above
        assert above.encode() > (prefix + tail).encode()
        if other > prefix and not other.startswith(prefix):
            assert other >= above
    assert common_prefix(prefix + "/" + tail, prefix, "/") == prefix + "/"


def test_a_folded_listing_seeks_over_what_it_folds(replica: Replica) -> None:
    """The steps of SQLite don't grow with the number of files below a common prefix."""

    def steps() -> int:
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        pool = ReaderPool(replica.path)
        with pool.snapshot() as snapshot:
            snapshot.files("default", "", "/")
        reader = pool._idle[0].connection
        reader.set_progress_handler(step, 1)
        with pool.snapshot() as snapshot:
            page = snapshot.files("default", "", "/")
        pool.close()
        assert page.prefixes == ("a/", "b/")
        return count

    fill(replica, ["a/0", "b/0"])
    few = steps()
    fill(replica, [f"{folder}/{number}" for folder in "ab" for number in range(1, 300)])
    assert steps() < few + 50
