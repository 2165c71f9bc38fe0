"""What a node asks of the operating system and the interpreter for its own process."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import threading
from typing import NoReturn

from node.errors import NodeError

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread may keep the interpreter from another: the Raft thread must answer in time
while the main loop moves bulk data. The default of 5 ms is a tenth of a heartbeat."""


def end_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies. Raises NodeError if it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise NodeError(f"The process {parent} that started this node is gone.")


def tune_interpreter() -> None:
    """Fair threads, and no garbage collector walking over what imports have made."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    gc.collect()
    # Thresholds stay as they are: errors make cycles, and a cycle may hold an 8 MiB buffer.
    gc.freeze()


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets an ordinary user have: every connection is one,
    every chunk volume two, and the usual 1,024 would end at a few hundred clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_at_the_latest_in(seconds: float) -> None:
    """End the process after `seconds`, whatever still hangs then; a daemon thread waits for it."""

    def end() -> None:
        print("holdfast: stopping took too long; ending at once", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def end_now(sentence: str) -> NoReturn:
    """End the process without any clean-up: what a failed disk would still acknowledge is worse."""
    logging.getLogger(__name__).critical(sentence)
    print(f"holdfast: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)
