"""What the parts of the cluster benchmark share: the nodes, the yardstick, and how to ask both.

The yardstick is the bare handler (`bare_handler.py`); requests carry the cluster's admin key. Every
upload has contents of its own, so that nothing is deduplicated.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec

from loadtests.measurements import Bar
from loadtests.request_generator import Requests
from loadtests.stream_client import Target, Transfer, UploadSource
from tests.end_to_end.cluster import HOST, OPEN_BUCKET, Cluster, NodeProcess

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CONCURRENCY = 32
STREAM_SIZE = GIB

PRELOADED = {4 * KIB: 2000, 64 * KIB: 600, 32 * MIB: 8}
"""How many files of which size the reads spread over."""


class Workload(msgspec.Struct, frozen=True):
    """Small requests of one kind, and the part of the bare handler's rate they have to reach."""

    method: str
    size: int
    bar: Bar | None = None

    def name(self) -> str:
        return f"{self.size // KIB} KiB {self.method}, {CONCURRENCY} at once"


class Yardstick:
    """The bare handler in its process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.bare_handler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process by closing its standard input."""
        self._process.communicate()


class Rig:
    """A running cluster and the bare handler beside it."""

    def __init__(
        self, cluster: Cluster, yardstick: Yardstick, *, repetitions: int, seconds: int
    ) -> None:
        self.cluster = cluster
        self.repetitions = repetitions
        self.seconds = seconds
        self.source = UploadSource()
        self.random = random.Random(1)
        self.uploaded_bytes = 0
        """By long uploads, in all parts together."""
        self._bare_port = yardstick.port
        self._headers = {"Authorization": f"Bearer {cluster.admin_key}"}
        self._identities = itertools.count(1)
        self._preloaded = False
        self._counting = threading.Lock()

    @property
    def nodes(self) -> Sequence[NodeProcess]:
        return self.cluster.nodes

    def close(self) -> None:
        self.source.close()

    def identity(self) -> int:
        """A number that names contents no other upload has; safe in several threads."""
        return next(self._identities)

    def target(self, node: NodeProcess, path: str) -> Target:
        return Target(HOST, node.port, f"/api/v1/files/{OPEN_BUCKET}/{path}", self._headers)

    def bare_target(self, path: str) -> Target:
        return Target(HOST, self._bare_port, path)

    def upload(self, node: NodeProcess, path: str, size: int) -> Transfer:
        """Upload contents that no other upload has; safe in several threads."""
        return self.upload_as(self.identity(), node, path, size)

    def upload_as(self, identity: int, node: NodeProcess, path: str, size: int) -> Transfer:
        """The same with contents that the caller knows the name of."""
        done = self.source.upload(self.target(node, path), identity=identity, size=size)
        with self._counting:
            self.uploaded_bytes += size
        return done

    def any_node(self) -> NodeProcess:
        return self.random.choice(self.nodes)

    def bare_requests(self, workload: Workload, run: int) -> Requests:
        prefix = "/sink/" if workload.method == "PUT" else f"/source/{workload.size}/"
        return Requests(
            method=workload.method,
            addresses=[f"{HOST}:{self._bare_port}"],
            prefix=prefix,
            size=workload.size,
            files=PRELOADED.get(workload.size, 1),
            run=run,
            concurrency=CONCURRENCY,
            seconds=self.seconds,
        )

    def our_requests(self, workload: Workload, run: int) -> Requests:
        """The same for the cluster: spread over its nodes."""
        folder = f"put-{workload.size}" if workload.method == "PUT" else f"get-{workload.size}"
        return msgspec.structs.replace(
            self.bare_requests(workload, run),
            addresses=[f"{HOST}:{node.port}" for node in self.nodes],
            prefix=f"/api/v1/files/{OPEN_BUCKET}/{folder}/",
            key=self.cluster.admin_key,
        )

    def preload(self) -> None:
        """Store the files that are read, once."""
        if self._preloaded:
            return
        say("storing the files that are read ...")
        with ThreadPoolExecutor(8) as threads:
            for size, count in PRELOADED.items():
                for each in [
                    threads.submit(self.upload, self.any_node(), f"get-{size}/{number}", size)
                    for number in range(count)
                ]:
                    each.result()
        self._preloaded = True


@contextmanager
def yardstick() -> Iterator[Yardstick]:
    """The bare handler, which ends with the block."""
    started = Yardstick()
    try:
        yield started
    finally:
        started.close()


def rate(transfer: Transfer) -> float:
    """Megabytes per second."""
    return transfer.size / transfer.seconds / 1e6


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
