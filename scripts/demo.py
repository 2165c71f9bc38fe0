"""What `scripts/demo` runs: a cluster of three, one round trip through it, and what to try next."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blake3 import blake3

from node.commands.dev import welcome
from node.development import OPEN_BUCKET, Child, DevelopmentCluster, stop_on_signals
from node.errors import NodeError

FILE_SIZE = 256 * 1024 * 1024
FILE_NAME = f"{OPEN_BUCKET}/demo.bin"
_PIECE_SIZE = 1024 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the round trip")
    parser.add_argument("--data", metavar="DIR", help="keep the contents here")
    arguments = parser.parse_args()
    started = time.monotonic()
    cluster: DevelopmentCluster | None = None
    try:
        cluster = DevelopmentCluster(arguments.data, 3, _say)
        stop_on_signals(cluster)
        cluster.start()
        _round_trip(cluster)
        _say(f"All that took {time.monotonic() - started:.1f} seconds.")
        if not arguments.once:
            for line in welcome(cluster):
                _say(line)
            cluster.watch()
            _say("Stopping ...")
    except NodeError as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if cluster is not None:
            cluster.stop()
    return 0


def _round_trip(cluster: DevelopmentCluster) -> None:
    first, last = cluster.nodes[0], cluster.nodes[-1]
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as folder:
        sent, received = Path(folder, "sent"), Path(folder, "received")
        _say(f"Making a file of {FILE_SIZE // 1024**2} MiB of random bytes ...")
        digest = _random_file(sent)
        _say(f"Storing it as {FILE_NAME} through node {first.number} ({first.url}) ...")
        _say(f"  {_command(first, 'put', str(sent), FILE_NAME)}")
        _say(f"Fetching it through node {last.number} ({last.url}) ...")
        _say(f"  {_command(last, 'get', FILE_NAME, str(received))}")
        if _digest(received) != digest:
            raise NodeError("What came back is not what was sent.")
        _say(f"The bytes are the same: BLAKE3 {digest[:16]}…")


def _command(node: Child, *arguments: str) -> str:
    """Run one `holdfast` command on the file; returns how fast it was."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "node", *arguments, "--url", node.url],
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")},
    )
    if done.returncode != 0:
        raise NodeError(f"holdfast {arguments[0]} failed; see the sentence above.")
    seconds = time.monotonic() - started
    return f"done in {seconds:.1f} seconds ({FILE_SIZE / seconds / 1e6:.0f} MB/s)"


def _random_file(path: Path) -> str:
    hasher = blake3()
    with path.open("wb") as file:
        for _ in range(FILE_SIZE // _PIECE_SIZE):
            piece = os.urandom(_PIECE_SIZE)
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def _digest(path: Path) -> str:
    hasher = blake3()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_SIZE):
            hasher.update(piece)
    return hasher.hexdigest()


def _say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    sys.exit(main())
