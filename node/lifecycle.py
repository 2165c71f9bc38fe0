"""From settings to a running node and back: what `holdfast serve` does.

The order matters. The directory is locked and judged before anything else; who this node is is
decided (`start_plan.py`); the boot counter is on disk before a port opens; ports are
tried before Raft starts, so that a mistake costs nothing. On SIGTERM or SIGINT requests drain,
leadership is handed over, and the process ends with 0; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable

import msgspec
import uvloop

from node import logs, process
from node.data_directory import DataDirectory, Identity
from node.errors import MembershipError
from node.join import JoinToken, ask_to_join
from node.logs import event
from node.own_membership import member_of
from node.peer import Node
from node.ports import check_available
from node.settings import Settings
from node.start_plan import Start, plan_start

logger = logging.getLogger(__name__)

_STOP_GRACE_SECONDS = 15.0
"""Beyond the drain: for handing over leadership, flushing and closing."""


def serve(
    settings: Settings, *, ask_token: Callable[[], str | None], say: Callable[[str], None]
) -> None:
    """Run the node until a signal. Raises NodeError with one sentence where it can't go on."""
    for port, purpose in (
        (settings.port, "clients"),
        (settings.peer_port, "peers"),
        (settings.raft_port, "Raft"),
    ):
        check_available(settings.listen, port, purpose)
    directory = DataDirectory.open(settings.data)
    with contextlib.closing(directory):
        identity = directory.identity()
        needs_token = settings.join and (identity is None or not identity.cluster_secret)
        token = _token(settings, ask_token if needs_token else lambda: None)
        start = plan_start(identity, join=settings.join, token=token, path=directory.path)
        if start.kind != "continue":
            directory.check_room()
        process.tune_interpreter()
        process.raise_descriptor_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, directory, start, token, say))


def _token(settings: Settings, ask: Callable[[], str | None]) -> JoinToken | None:
    text = settings.join_token.value if settings.join_token is not None else ask()
    return None if text is None else JoinToken.parse(text)


async def _run(
    settings: Settings,
    directory: DataDirectory,
    start: Start,
    token: JoinToken | None,
    say: Callable[[str], None],
) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop, settings.drain_seconds + _STOP_GRACE_SECONDS)
    identity = directory.count_boot(start.identity)
    logs.identify(node_id=identity.node_id)
    event(
        logger, logging.INFO, "starting", node_id=identity.node_id, cluster=identity.cluster_id,
        boot=identity.boot_counter, data=directory.path, kind=start.kind,
    )  # fmt: skip
    living = asyncio.create_task(_live(settings, directory, identity, token, say))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((living, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not living.done():
        # Wherever it is: waiting for admission, for a quorum, or serving.
        living.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await living
    event(logger, logging.INFO, "stopped")


async def _live(
    settings: Settings,
    directory: DataDirectory,
    identity: Identity,
    token: JoinToken | None,
    say: Callable[[str], None],
) -> None:
    """Join if need be, then serve until cancelled. Raises NodeError."""
    if not identity.cluster_secret:
        assert token is not None, "plan_start asks for a token"
        say(f"Asking cluster {token.cluster_id} to admit this node ...")
        identity = await ask_to_join(token, identity, member_of(settings, identity))
        directory.write_identity(identity)
    node = Node(settings, directory, identity, say)
    try:
        await node.start()
        await node.run()
    except MembershipError as error:
        if error.left:
            directory.write_identity(msgspec.structs.replace(identity, stage="left"))
        raise
    finally:
        await node.stop()


def _stop_on_signals(stop: asyncio.Event, limit_seconds: float) -> None:
    loop = asyncio.get_running_loop()

    def begin() -> None:
        if stop.is_set():
            os._exit(1)
        process.end_at_the_latest_in(limit_seconds)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin)
