"""Listings: pages in key order, folded at a delimiter."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.gateway.serving import Serving

PATHS = ["a", "b/1", "b/2", "b/c/1", "b0", "c d", "ü/1"]


@pytest.fixture
async def shelf(gateway: Serving) -> Serving:
    for path in PATHS:
        await gateway.file("PUT", f"box/{quote(path)}", data=path.encode())
    return gateway


async def listed(gateway: Serving, query: str) -> tuple[list[str], list[str], str | None]:
    page = (await gateway.file("GET", f"box{query}")).json
    return [file["path"] for file in page["files"]], page["prefixes"], page["next_cursor"]


async def test_all_files_are_listed_in_order(shelf: Serving) -> None:
    """Without parameters: every file in the order of its bytes."""
    assert await listed(shelf, "") == (PATHS, [], None)


async def test_a_prefix_and_a_delimiter_make_folders(shelf: Serving) -> None:
    """Keys beyond the delimiter fold into common prefixes."""
    assert await listed(shelf, "?delimiter=/") == (["a", "b0", "c d"], ["b/", "ü/"], None)
    assert await listed(shelf, "?prefix=b/&delimiter=/") == (["b/1", "b/2"], ["b/c/"], None)
    assert await listed(shelf, "?prefix=%C3%BC") == (["ü/1"], [], None)
    assert await listed(shelf, "?prefix=c+d") == (["c d"], [], None)


@pytest.mark.parametrize("delimiter", ["", "/"])
async def test_pages_join_up(shelf: Serving, delimiter: str) -> None:
    """Walking with a cursor gives each file and each prefix once, as one page would."""
    whole = await listed(shelf, f"?delimiter={delimiter}")
    files: list[str] = []
    prefixes: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await listed(
            shelf,
            f"?delimiter={delimiter}&limit=1" + (f"&cursor={quote(cursor)}" if cursor else ""),
        )
        assert len(page[0]) + len(page[1]) <= 1
        files += page[0]
        prefixes += page[1]
        cursor = page[2]
    assert (files, prefixes, None) == whole


@pytest.mark.parametrize(
    "query",
    ["?limit=0", "?limit=1001", "?limit=x", "?limit=-1", "?depth=1", "?prefix=%00", "?prefix=%FF"],
)
async def test_a_wrong_parameter_is_refused(gateway: Serving, query: str) -> None:
    """400 names the parameter."""
    assert (await gateway.file("GET", f"box{query}")).code == "invalid_parameter"


async def test_metadata_of_what_is_not_there(gateway: Serving) -> None:
    """404 tells a missing file from a missing bucket."""
    assert (await gateway.request("GET", "/api/v1/metadata/box/f")).code == "no_such_file"
    assert (await gateway.request("GET", "/api/v1/metadata/bux/f")).code == "no_such_bucket"
    assert (await gateway.file("GET", "bux")).code == "no_such_bucket"
