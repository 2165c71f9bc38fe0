"""Uploads, deletions, moves, restarts and collections in any order lose no chunk and leak none.

Hypothesis decides the order of steps in a small cluster of the product's own parts
(`race_world.py`): deduplicating uploads through gateways that pause anywhere, deletions of files,
generations and epochs at will, nodes that lag behind the log, forget their touches in a restart, or
leave for good, and steps in the middle of a deletion. After each step every chunk that a file
refers to must be somewhere; at the end, at rest, it must be on its owners, and nothing else be
anywhere (rules D1, D4, D5, D6, D10).

The orders are the same in every run. HOLDFAST_RACE_EXAMPLES=1000 tries as many others.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.ring.race_world import Node, RaceWorld, Upload, remembered_ring

EXAMPLES = int(os.environ.get("HOLDFAST_RACE_EXAMPLES", "0"))

CONTENTS = [random.Random(number).randbytes(300 + number) for number in range(3)]
"""So few that most uploads find their chunk there."""

BY_ID = {blake3(content).digest(): content for content in CONTENTS}

PATHS = ["a", "b"]

UPLOADS_MAX = 4
"""Paused at once; the oldest gives up when another begins."""

number = st.integers(0, 11)
"""Which node, upload or file: counted round among those there are."""


class Race(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._changed = pytest.MonkeyPatch()
        # Peers that lag do so until the test lets them catch up: there is nothing to wait for.
        self._changed.setattr("ring.replicator.LAGGING_PAUSES_SECONDS", ())
        self._changed.setattr("ring.ring_cache.build_ring", remembered_ring)
        self._directory = tempfile.TemporaryDirectory(prefix="holdfast-race-")
        self._runner = asyncio.Runner()
        self._world = RaceWorld(Path(self._directory.name))
        self._uploads: list[Upload] = []
        self._has_started = False

    def _run(self, step: Awaitable[None]) -> None:
        async def run() -> None:
            await step

        self._runner.run(run())

    def _node(self, at: int) -> Node:
        return self._world.alive[at % len(self._world.alive)]

    @initialize(count=st.integers(2, 4), replicas=st.sampled_from([1, 1, 2, 3]))
    def start(self, count: int, replicas: int) -> None:
        self._run(self._world.start(count, replicas=replicas))
        self._has_started = True

    # --- clients -----------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["begin", "write", "write", "commit", "upload", "upload", "delete"]),
        at=number,
        content=st.integers(0, len(CONTENTS) - 1),
    )
    def a_client(self, what: str, at: int, content: int) -> None:
        """Takes a step of an upload, which pauses then; or uploads, deletes or reads a file."""
        self._run(self._act(what, at, content))

    async def _act(self, what: str, at: int, content: int) -> None:
        world = self._world
        if what == "begin":
            self._begin(self._node(at), CONTENTS[content])
        elif what == "write" and self._uploads:
            await self._write(self._uploads[at % len(self._uploads)])
        elif what == "commit":
            await self._commit(at)
        elif what == "upload":
            upload = self._begin(self._node(at), CONTENTS[content])
            if await self._write(upload):
                self._uploads.remove(upload)
                await world.commit(upload, PATHS[at % len(PATHS)])
        elif what == "delete" and world.files:
            await world.download(min(world.files), self._node(at))
            await world.delete(sorted(world.files)[at % len(world.files)])
            await world.reclaim()

    def _begin(self, node: Node, content: bytes) -> Upload:
        upload = Upload(node, content, node.view.generation())
        self._uploads = [*self._uploads[1 - UPLOADS_MAX :], upload]
        return upload

    async def _write(self, upload: Upload) -> bool:
        if await self._world.write(upload):
            return True
        self._uploads.remove(upload)
        return False

    async def _commit(self, at: int, *, restages: bool = True) -> None:
        written = [upload for upload in self._uploads if upload.written is not None]
        if written:
            upload = written[at % len(written)]
            self._uploads.remove(upload)
            await self._world.commit(upload, PATHS[at % len(PATHS)], restages=restages)

    @rule(
        at=number,
        content=st.integers(0, len(CONTENTS) - 1),
        meanwhile=st.lists(
            st.sampled_from(["generations", "generations", "ring", "restarts", "repairs", "drops"]),
            min_size=1,
            max_size=5,
        ),
    )
    def a_gateway_pauses(self, at: int, content: int, meanwhile: list[str]) -> None:
        """Between the acknowledgement and the commit of an upload much happens to all nodes."""

        async def pause() -> None:
            upload = self._begin(self._node(at), CONTENTS[content])
            if not await self._write(upload):
                return
            for what in meanwhile:
                await self._happens(what, at)
            self._uploads.remove(upload)
            leaving = next(filter(self._world.may_leave, self._world.alive), None)
            if leaving is not None:
                await self._leave(leaving)
            if upload.node.is_gone:
                # Another gateway goes on with it: it knows as much as this one did.
                upload.node = self._node(at)
            await self._world.commit(upload, PATHS[at % len(PATHS)])

        self._run(pause())

    async def _happens(self, what: str, at: int) -> None:
        world = self._world
        if what == "ring":
            others = [node.number for node in world.alive if node.number % 3 != at % 3]
            await world.change_ring(others or [self._node(at).number])
        elif what == "generations":
            await world.advance_generation()
            await world.advance_generation()
            for node in world.alive:
                await node.view.refresh()
                await node.collect()
        for node in world.alive:
            if what == "restarts":
                await node.stop()
                await node.start()
                await node.know_floor()
            elif what == "repairs":
                await world.repair(node)
            elif what == "drops":
                await node.drop()

    # --- the cluster -------------------------------------------------------------------------

    @rule(times=st.integers(1, 2))
    def generations_pass(self, times: int) -> None:
        async def advance() -> None:
            for _ in range(times):
                await self._world.advance_generation()

        self._run(advance())

    @rule(members=st.sets(number, min_size=1, max_size=3), settles=st.booleans())
    def the_ring_changes(self, members: set[int], settles: bool) -> None:
        """Some settle at once; a node that is not needed any more may leave then, for good."""

        async def change() -> None:
            world = self._world
            await world.change_ring(sorted({self._node(each).number for each in members}))
            if settles:
                for node in world.alive:
                    await world.repair(node)

        self._run(change())

    @precondition(lambda self: any(map(self._world.may_leave, self._world.alive)))
    @rule()
    def a_node_leaves(self) -> None:
        self._run(self._leave(next(filter(self._world.may_leave, self._world.alive))))

    async def _leave(self, leaving: Node) -> None:
        self._uploads = [upload for upload in self._uploads if upload.node is not leaving]
        await self._world.leave(leaving)

    # --- nodes -------------------------------------------------------------------------------

    @rule(
        at=number,
        what=st.sampled_from(["catch up", "restart", "floor", "repair", "collect", "drop", "drop"]),
    )
    def a_node(self, at: int, what: str) -> None:
        self._run(self._work(self._node(at), what))

    async def _work(self, node: Node, what: str) -> None:
        if what == "catch up":
            node.view.catch_up(1 + node.number)
        elif what == "restart":
            await node.stop()
            await node.start()
        elif what == "floor":
            await node.know_floor()
        elif what == "repair":
            await self._world.repair(node)
        elif what == "collect":
            await node.collect()
        else:
            await node.drop()

    @rule()
    def all_catch_up(self) -> None:
        for node in self._world.alive:
            node.view.catch_up(len(self._world.log))

    @rule(
        at=number,
        job=st.sampled_from(["collect", "drop"]),
        steps=st.lists(
            st.tuples(st.sampled_from(["upload", "drop", "catch up", "commit"]), number),
            min_size=1,
            max_size=4,
        ),
    )
    def a_node_is_overtaken(self, at: int, job: str, steps: list[tuple[str, int]]) -> None:
        """Things happen between the decision to delete a chunk and the deletion."""
        busy = self._node(at)
        work: Callable[[], Awaitable[None]] = busy.collect if job == "collect" else busy.drop

        async def overtake(chunk_id: bytes) -> None:
            for what, other in steps:
                node = self._node(other)
                if what == "upload":
                    await self._write(self._begin(node, BY_ID[chunk_id]))
                elif what == "catch up":
                    node.view.catch_up(len(self._world.log))
                elif what == "commit":
                    # What a commit has to write anew would wait for the busy writer thread.
                    await self._commit(other, restages=False)
                elif node is not busy:
                    await node.drop()

        async def run() -> None:
            await self._world.while_judging(busy, work, overtake)

        self._run(run())

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        if self._has_started:
            self._run(self._world.assert_nothing_lost())

    def teardown(self) -> None:
        try:
            if self._has_started:
                self._run(self._rest())
        finally:
            self._run(self._world.stop())
            self._runner.close()
            self._directory.cleanup()
            self._changed.undo()

    async def _rest(self) -> None:
        world = self._world
        await world.rest()
        await world.assert_in_place()
        for path in sorted(world.files):
            for node in world.alive:
                await world.download(path, node)
        for path in sorted(world.files):
            await world.delete(path)
        await world.rest()
        await world.assert_in_place()


pytestmark = pytest.mark.timeout(1200)
"""It takes seconds of processor time, but thousands of hand-overs between threads, each of which
waits its turn on a machine that is busy with other things."""

TestRace = Race.TestCase
TestRace.settings = settings(
    max_examples=EXAMPLES or 8,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    report_multiple_bugs=False,
)
