"""Short requests at a fixed concurrency, by wrk: a generator in C that leaves servers the cores."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Sequence

import msgspec

_SCRIPT = pathlib.Path(__file__).with_name("requests.lua")
_THREADS = 8
"""Threads share the connections and spread over the addresses, so there are more than nodes."""
_TIMEOUT = "10s"


class GeneratorError(Exception):
    """wrk failed, or its requests did; names the command or the number of failures."""


class Outcome(msgspec.Struct, frozen=True):
    """What wrk counted. Latencies are in milliseconds; `bytes` are those received."""

    requests: int
    seconds: float
    bytes: int
    failed: int
    p50_ms: float
    p99_ms: float

    def rate(self) -> float:
        """Return requests per second."""
        return self.requests / self.seconds


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """One load: what is asked of whom, how often at once and for how long."""

    method: str
    """PUT (each with a path and contents of its own) or GET (spread over `files` paths)."""
    addresses: Sequence[str]
    """`host:port` of the nodes; the connections are spread over them."""
    prefix: str
    size: int
    files: int = 1
    run: int = 0
    """Paths and contents of a run are unlike any other run's; a PUT's paths start with it."""
    key: str = ""
    concurrency: int = 32
    seconds: int = 5


def generate(requests: Requests) -> Outcome:
    """Run the load to its end. Raises GeneratorError if wrk fails, a request does, or a body of a
    GET is shorter than `size`."""
    threads = min(_THREADS, requests.concurrency)
    command = ["wrk", f"-t{threads}", f"-c{requests.concurrency}", f"-d{requests.seconds}s"]
    command += ["--timeout", _TIMEOUT, "-s", str(_SCRIPT), f"http://{requests.addresses[0]}/"]
    settings = {
        "BENCH_METHOD": requests.method,
        "BENCH_ADDRESSES": " ".join(requests.addresses),
        "BENCH_PREFIX": requests.prefix,
        "BENCH_SIZE": str(requests.size),
        "BENCH_RUN": str(requests.run),
        "BENCH_FILES": str(requests.files),
        "BENCH_KEY": requests.key,
    }
    finished = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise GeneratorError(f"{' '.join(command)}: {finished.stdout}{finished.stderr}")
    outcome = msgspec.json.decode(finished.stdout.strip().splitlines()[-1], type=Outcome)
    if outcome.requests == 0 or outcome.failed:
        raise GeneratorError(
            f"{outcome.failed} of {outcome.requests} requests failed: {requests.method} "
            f"{requests.prefix} at {', '.join(requests.addresses)}\n{finished.stdout}"
        )
    if requests.method == "GET" and outcome.bytes < outcome.requests * requests.size:
        raise GeneratorError(
            f"{outcome.requests} bodies of {requests.size} bytes came in {outcome.bytes} bytes"
        )
    return outcome
