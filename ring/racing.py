"""One question to several nodes, the next of them asked as soon as one takes long (rule D3).

The first node is asked by the caller's own task, with nothing but a timer beside it: where it
answers quickly, which is nearly always, no task is made. When the timer runs out a second task goes
on with the next node, and so on; the first good answer wins, and the others are cancelled, which
returns their buffers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from ring.byte_gate import ByteGate
from ring.members import Member

RACERS_MAX = 3
"""Nodes asked at once for one chunk: two that hang at the same time cost two delays."""

Answer = TypeVar("Answer")

_running: set[asyncio.Task[object]] = set()
"""The loop holds tasks weakly; those that lost unwind without anybody who waits for them."""


class Candidates:
    """Whom to ask, in order; `more` is awaited once, when all of the first have been asked."""

    def __init__(
        self, first: Iterable[Member], more: Callable[[], Awaitable[Iterable[Member]]]
    ) -> None:
        self._queue = deque(first)
        self._more: Callable[[], Awaitable[Iterable[Member]]] | None = more
        self._extending: asyncio.Lock | None = None

    @property
    def exhausted(self) -> bool:
        return not self._queue and self._more is None

    async def next(self) -> Member | None:
        if not self._queue and self._more is not None:
            if self._extending is None:
                self._extending = asyncio.Lock()
            async with self._extending:
                if not self._queue and self._more is not None:
                    self._queue.extend(await self._more())
                    self._more = None
        return self._queue.popleft() if self._queue else None


class Race(Generic[Answer]):
    """One chunk's question.

    `ask` returns None where a node has no good answer. `delay` says how many seconds a node may
    take before the next is asked beside it. A second question enters `gate` with `size`, its memory
    in bytes. `is_short` says that this node itself is short of memory: then nobody is raced, as it
    would only wait as well. `beaten` is told of a node that was overtaken, and after how long;
    `discard` takes an answer that comes too late.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        ask: Callable[[Member], Awaitable[Answer | None]],
        delay: Callable[[Member], float],
        gate: ByteGate,
        size: int,
        is_short: Callable[[], bool],
        beaten: Callable[[Member, float], None],
        discard: Callable[[Answer], None],
    ) -> None:
        self.candidates = candidates
        self.ask = ask
        self.delay = delay
        self.is_short = is_short
        self.beaten = beaten
        self.discard = discard
        self.gate = gate
        self.size = size

    async def run(self, racers: int = 1) -> Answer | None:
        """The first good answer; None once all have been asked and none had one."""
        while (member := await self.candidates.next()) is not None:
            heat = _Heat(self, member, racers)
            answer = await heat.run()
            if answer is not None:
                return answer
            if heat.rest is not None:
                return await heat.join()
        return None

    async def run_beside(self, racers: int) -> Answer | None:
        """The same, in a task beside others, once there is room for another buffer."""
        await self.gate.enter(self.size)
        try:
            return await self.run(racers)
        finally:
            self.gate.leave(self.size)


class _Heat(Generic[Answer]):
    """One node being asked, and the task that goes on with the others once it takes long."""

    __slots__ = ("_is_inline", "_is_over", "_member", "_race", "_racers", "_started", "_task",
                 "_timer", "interrupted", "rest")  # fmt: skip

    def __init__(self, race: Race[Answer], member: Member, racers: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._race = race
        self._member = member
        self._racers = racers
        self._task = task
        self._timer: asyncio.TimerHandle | None = None
        self._started = 0.0
        self._is_inline = True
        """The node has not answered yet: whoever is quicker interrupts it."""
        self._is_over = False
        """There is an answer, or nobody wants one any more."""
        self.rest: asyncio.Task[Answer | None] | None = None
        self.interrupted = False

    async def run(self) -> Answer | None:
        """Return the node's answer, or a quicker one; None where the node has none."""
        if self._racers < RACERS_MAX:
            self._arm()
        cancels = self._task.cancelling()
        try:
            answer = await self._race.ask(self._member)
        except asyncio.CancelledError:
            self._is_inline = False
            if self.interrupted and self._task.uncancel() <= cancels:
                assert self.rest is not None
                return self.rest.result()
            self._leave()
            raise
        except BaseException:
            self._leave()
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._is_inline = False
        if self.interrupted:
            # It went on in spite of the interruption: then its answer is as good.
            self._task.uncancel()
            if answer is None:
                assert self.rest is not None
                return self.rest.result()
        if answer is not None:
            self._leave()
        return answer

    async def join(self) -> Answer | None:
        """The node has no answer: wait for those who are asked already."""
        assert self.rest is not None
        try:
            return await self.rest
        except asyncio.CancelledError:
            self._leave()
            raise

    def _arm(self) -> None:
        loop = self._task.get_loop()
        self._started = loop.time()
        self._timer = loop.call_later(self._race.delay(self._member), self._overdue)

    def _overdue(self) -> None:
        if not self._is_inline or self._race.candidates.exhausted:
            return
        loop = self._task.get_loop()
        race, racers = self._race, self._racers + 1
        if race.is_short():
            self._timer = loop.call_later(race.delay(self._member), self._overdue)
            return
        if self._racers == 1:
            self.rest = loop.create_task(race.run_beside(racers))
        elif race.gate.try_enter(race.size):
            self.rest = loop.create_task(race.run(racers))
            # Not within the task: one that is cancelled before its first step never gets there.
            self.rest.add_done_callback(lambda _: race.gate.leave(race.size))
        else:
            # Whoever is inside must not wait at the gate, or all inside could.
            self._timer = loop.call_later(race.delay(self._member), self._overdue)
            return
        _running.add(self.rest)
        self.rest.add_done_callback(self._rest_ended)

    def _rest_ended(self, rest: asyncio.Task[Answer | None]) -> None:
        _running.discard(rest)
        if rest.cancelled():
            return
        if rest.exception() is not None or rest.result() is None:
            # The node may still answer; whoever joins meets the error.
            return
        if self._is_over:
            self._discard(rest)
        elif self._is_inline:
            self.interrupted = True
            self._race.beaten(self._member, self._task.get_loop().time() - self._started)
            self._task.cancel()

    def _leave(self) -> None:
        """Whatever the others find is not wanted any more."""
        self._is_inline = False
        self._is_over = True
        rest = self.rest
        if rest is None:
            return
        if not rest.done():
            rest.cancel()
        elif rest not in _running:
            self._discard(rest)

    def _discard(self, rest: asyncio.Task[Answer | None]) -> None:
        if not rest.cancelled() and rest.exception() is None:
            answer = rest.result()
            if answer is not None:
                self._race.discard(answer)
