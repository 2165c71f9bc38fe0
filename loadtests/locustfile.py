"""Many users of a file store at once, each of whom knows what it must get back.

A user has a folder that only it writes to, so it knows every file in it: name, size and contents,
generated from a seed (`loadtests/contents.py`). Whatever it reads, through a node chosen at random
for every request, must be the newest version it was told is stored, byte by byte; a listing must
name exactly its files; a deleted file must be gone. Anything else, any error and any wrong byte, is
a failed request in locust's table, and locust then ends with exit code 1.

Tasks carry tags, so that a run can be restricted to some: `small`, `large`, `read`, `write`,
`browse`, `overwrite`, `delete`. How to run it: loadtests/README.md.
"""

from __future__ import annotations

import random
import time
import urllib.parse
import uuid
from argparse import Namespace
from typing import Any, ClassVar, cast

import msgspec
from blake3 import blake3
from locust import FastHttpUser, between, events, tag, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment

from loadtests.contents import Contents, ContentsReader

SMALL_SIZES = (0, 64 * 1024)
LARGE_SIZES = (1 << 20, 64 << 20)
"""Bytes, drawn so that every power of two is as likely as the next: many short, few long."""

EDGE_SIZES = (0, 1, 4095, 4096, 4097, (8 << 20) - 1, 8 << 20, (8 << 20) + 1)
"""Where the store changes its ways: nothing, inside the metadata, one chunk, two."""

LARGE_SHARE = 0.1
"""Part of the files of a user that are large; nearly all of its bytes."""

LISTING_PAGE = 100
"""Files per page of a listing; small, so that browsing follows cursors."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # by locust
def add_options(parser: LocustArgumentParser) -> None:
    """Add what this load test needs to know to locust's command line and web page."""
    parser.add_argument(
        "--nodes",
        default="http://127.0.0.1:7070",
        env_var="HOLDFAST_LOAD_NODES",
        help="URLs of the nodes, with commas between them; each request goes to any of them",
    )
    parser.add_argument(
        "--bucket", default="default", env_var="HOLDFAST_LOAD_BUCKET", help="must exist"
    )
    parser.add_argument(
        "--key",
        default="",
        env_var="HOLDFAST_KEY",
        is_secret=True,
        help="an API key that may write",
    )
    parser.add_argument(
        "--working-set-mb",
        type=int,
        default=200,
        env_var="HOLDFAST_LOAD_WORKING_SET_MB",
        help="megabytes that all users together keep stored; written before the tasks begin",
    )


@events.init.add_listener  # type: ignore[untyped-decorator]  # by locust
def choose_nodes(environment: Environment, **_: Any) -> None:
    """Give every user the nodes; locust itself wants one host to show."""
    options = environment.parsed_options
    assert options is not None
    StoreUser.nodes = [url.strip().rstrip("/") for url in options.nodes.split(",")]
    StoreUser.host = StoreUser.nodes[0]


class _ListedFile(msgspec.Struct):
    path: str
    size_bytes: int


class _Page(msgspec.Struct):
    files: list[_ListedFile]
    next_cursor: str | None = None


def draw_size(source: random.Random, *, large: bool) -> int:
    """Return a size in bytes: one in eight on an edge, the others logarithmically even."""
    low, high = LARGE_SIZES if large else SMALL_SIZES
    if source.random() < 0.125:
        return source.choice([size for size in EDGE_SIZES if low <= size <= high])
    return min(high, int(max(low, 1) * 2 ** source.uniform(0, (high // max(low, 1)).bit_length())))


class StoreUser(FastHttpUser):
    """One user with a folder of its own. Its requests are one after the other."""

    nodes: ClassVar[list[str]] = []
    wait_time = between(0.0, 0.2)
    connection_timeout = 10.0
    network_timeout = 60.0
    max_retries = 0
    """A request that fails has failed; retrying is what the store is tested for, not the test."""

    def on_start(self) -> None:
        """Store this user's part of the working set."""
        options: Namespace = self.environment.parsed_options
        self._folder = f"load/{uuid.uuid4().hex}"
        self._random = random.Random(self._folder)
        self._bucket = options.bucket
        self._headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
        self._files: dict[str, Contents] = {}
        self._checksums: dict[Contents, str] = {}
        self._counter = 0
        users = max(1, options.num_users or 1)
        self._share = options.working_set_mb * 1_000_000 // users
        while self._stored() < self._share * 0.9:
            self._store(self._new_path(), large=self._random.random() < LARGE_SHARE)

    # --- tasks -------------------------------------------------------------------------------

    @tag("small", "write")
    @task(6)
    def store_small(self) -> None:
        """Store a new small file."""
        self._store(self._new_path(), large=False)

    @tag("large", "write")
    @task(1)
    def store_large(self) -> None:
        """Store a new large file; the oldest go where that is more than the user's share."""
        self._store(self._new_path(), large=True)
        while self._stored() > self._share and len(self._files) > 1:
            self._delete(next(iter(self._files)))

    @tag("small", "read")
    @task(20)
    def read_small(self) -> None:
        """Read a whole small file."""
        if path := self._choose(large=False):
            self._read(path)

    @tag("large", "read")
    @task(3)
    def read_large(self) -> None:
        """Read a whole large file."""
        if path := self._choose(large=True):
            self._read(path)

    @tag("large", "read")
    @task(3)
    def read_range(self) -> None:
        """Read some bytes from the middle of a large file."""
        if path := self._choose(large=True):
            self._read_range(path)

    @tag("browse")
    @task(3)
    def browse(self) -> None:
        """List the folder, page by page: exactly this user's files, with their sizes."""
        expected = {path: contents.size for path, contents in self._files.items()}
        listed: dict[str, int] = {}
        cursor: str | None = ""
        while cursor is not None:
            query = {"prefix": f"{self._folder}/", "limit": str(LISTING_PAGE)}
            if cursor:
                query["cursor"] = cursor
            url = f"{self._node()}/api/v1/files/{self._bucket}?{urllib.parse.urlencode(query)}"
            with self._request("GET", url, "list") as response:
                if response.status_code != 200:
                    response.failure(f"list: {response.status_code} {response.text}")
                    return
                page = msgspec.json.decode(response.content, type=_Page)
                listed.update({file.path: file.size_bytes for file in page.files})
                cursor = page.next_cursor
                if cursor is None and listed != expected:
                    wrong = sorted(listed.items() ^ expected.items())
                    response.failure(f"list: {len(wrong)} entries differ, first {wrong[0]}")

    @tag("browse")
    @task(3)
    def look(self) -> None:
        """Ask for a file's size and entity tag without its contents."""
        if not self._files:
            return
        path, contents = self._random.choice(list(self._files.items()))
        with self._request("HEAD", self._url(path), "head") as response:
            length = int((response.headers or {}).get("content-length", -1))
            if response.status_code != 200 or length != contents.size:
                response.failure(f"head: {response.status_code}, {length} of {contents.size} bytes")

    @tag("overwrite", "write")
    @task(3)
    def overwrite(self) -> None:
        """Store other contents in a file that is there, and read them back at once."""
        if path := self._choose(large=self._random.random() < LARGE_SHARE):
            self._store(path, large=self._files[path].size >= LARGE_SIZES[0])
            if path in self._files:
                self._read(path)

    @tag("delete")
    @task(2)
    def delete(self) -> None:
        """Delete a file and see that it is gone."""
        path = self._choose(large=False)
        if path is None or not self._delete(path):
            return
        with self._request("GET", self._url(path), "get deleted") as response:
            if response.status_code == 404:
                response.success()
            else:
                response.failure(f"deleted, and still {response.status_code}: {path}")

    # --- steps -------------------------------------------------------------------------------

    def _store(self, path: str, *, large: bool) -> None:
        contents = Contents(
            seed=self._random.getrandbits(62),
            size=draw_size(self._random, large=large),
            compressible=self._random.random() < 0.3,
        )
        reader = ContentsReader(contents)
        body = reader if contents.size else b""
        # Until the answer comes it is not known which version is there: no expectations meanwhile.
        replaced = self._files.pop(path, None)
        if replaced is not None:
            self._checksums.pop(replaced, None)
        with self._request("PUT", self._url(path), _named("put", contents.size), body) as response:
            if response.status_code in (200, 201):
                self._files[path] = contents
                self._checksums[contents] = reader.checksum()
            else:
                response.failure(f"put: {response.status_code} {response.text}")

    def _read(self, path: str) -> None:
        contents = self._files[path]
        with self._request(
            "GET", self._url(path), _named("get", contents.size), stream=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"get: {response.status_code} {response.text}")
                return
            hasher, size = blake3(), 0
            while piece := response.stream.read(1 << 20):
                hasher.update(piece)
                size += len(piece)
            self._count_body(response, size)
            if size != contents.size or hasher.hexdigest() != self._checksums[contents]:
                response.failure(f"wrong contents: {path}, {size} of {contents.size} bytes")

    def _read_range(self, path: str) -> None:
        contents = self._files[path]
        start = self._random.randrange(contents.size)
        end = min(contents.size, start + self._random.randrange(1, 1 << 20))
        header = {"Range": f"bytes={start}-{end - 1}"}
        with self._request("GET", self._url(path), "get range", headers=header) as response:
            if response.status_code != 206:
                response.failure(f"range: {response.status_code} {response.text}")
            elif response.content != contents.read(start, end):
                response.failure(f"wrong contents: {path}, bytes {start} to {end}")

    def _delete(self, path: str) -> bool:
        self._checksums.pop(self._files.pop(path), None)
        with self._request("DELETE", self._url(path), "delete") as response:
            if response.status_code not in (200, 204):
                response.failure(f"delete: {response.status_code} {response.text}")
                return False
        return True

    def _request(
        self,
        method: str,
        url: str,
        name: str,
        body: Any = None,  # Bytes or a reader; locust's annotation knows only strings.
        *,
        stream: bool = False,
        headers: dict[str, str] | None = None,
    ) -> ResponseContextManager:
        # Compressed answers would make sizes incomparable and hide what the store sends.
        all_headers = {"Accept-Encoding": "identity", **self._headers, **(headers or {})}
        self._began = time.perf_counter()
        return self.client.request(
            method,
            url,
            name=name,
            data=body,
            headers=all_headers,
            stream=stream,
            catch_response=True,
        )

    def _count_body(self, response: ResponseContextManager, size: int) -> None:
        """Let locust count a streamed response with its body, which came after its own clock."""
        meta = cast(dict[str, Any], response.request_meta)
        meta["response_time"] = (time.perf_counter() - self._began) * 1000
        meta["response_length"] = size

    def _choose(self, *, large: bool) -> str | None:
        paths = [
            path
            for path, contents in self._files.items()
            if (contents.size >= LARGE_SIZES[0]) == large
        ]
        return self._random.choice(paths) if paths else None

    def _stored(self) -> int:
        return sum(contents.size for contents in self._files.values())

    def _new_path(self) -> str:
        self._counter += 1
        return f"{self._folder}/{self._counter:06}"

    def _node(self) -> str:
        return self._random.choice(self.nodes)

    def _url(self, path: str) -> str:
        return f"{self._node()}/api/v1/files/{self._bucket}/{path}"


def _named(method: str, size: int) -> str:
    """The line of locust's table that a transfer counts in."""
    return f"{method} {'large' if size >= LARGE_SIZES[0] else 'small'}"
