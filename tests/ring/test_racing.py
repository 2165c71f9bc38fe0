"""The next node is asked once one takes long; one answer wins, nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from ring.byte_gate import ByteGate
from ring.members import Member
from ring.racing import RACERS_MAX, Candidates, Race
from tests.fakes.ring_nodes import eventually

FOREVER = 3600.0


def _member(name: str) -> Member:
    return Member(node_id=name, peer_address="", raft_address="", client_url="")


@dataclass
class Course:
    """A race whose nodes answer when the test says so."""

    first: str
    more: str = ""
    delay_seconds: float = 0.0
    gate: ByteGate = field(default_factory=lambda: ByteGate(10))
    short: bool = False

    def __post_init__(self) -> None:
        self.asked: dict[str, asyncio.Future[str | None]] = {}
        self.cancelled: list[str] = []
        self.beaten: list[str] = []
        self.discarded: list[str] = []
        self.asked_for_more = 0
        self.tasks_at_asking: list[int] = []

    async def _more(self) -> Iterable[Member]:
        self.asked_for_more += 1
        await asyncio.sleep(0)
        return [_member(name) for name in self.more]

    async def _ask(self, member: Member) -> str | None:
        name = member.node_id
        self.tasks_at_asking.append(len(asyncio.all_tasks()))
        self.asked[name] = asyncio.get_running_loop().create_future()
        try:
            return await self.asked[name]
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    def start(self) -> asyncio.Task[str | None]:
        race = Race(
            Candidates([_member(name) for name in self.first], self._more),
            ask=self._ask,
            delay=lambda _: self.delay_seconds,
            gate=self.gate,
            size=1,
            is_short=lambda: self.short,
            beaten=lambda member, _: self.beaten.append(member.node_id),
            discard=self.discarded.append,
        )
        return asyncio.ensure_future(race.run())

    async def until_asked(self, name: str) -> None:
        await eventually(lambda: name in self.asked, seconds=60)


async def _spin() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_answers_quickly_is_asked_alone() -> None:
    """No other node is asked, and no task is made."""
    course = Course("ab", delay_seconds=FOREVER)
    running = course.start()
    await course.until_asked("a")
    before = len(asyncio.all_tasks())
    course.asked["a"].set_result("good")
    assert await running == "good"
    assert course.asked.keys() == {"a"}
    assert course.tasks_at_asking == [before]
    assert course.asked_for_more == 0


async def test_a_slow_node_is_raced_and_the_first_answer_wins() -> None:
    """The loser is cancelled, and remembered as beaten if it was asked first."""
    for winner, loser, beaten in (("b", "a", ["a"]), ("a", "b", [])):
        course = Course("ab")
        running = course.start()
        await course.until_asked("b")
        course.asked[winner].set_result("from " + winner)
        assert await running == "from " + winner
        await _spin()
        assert course.cancelled == [loser]
        assert course.beaten == beaten
        assert course.gate.inside_bytes == 0


async def test_a_node_that_has_none_is_followed_at_once() -> None:
    """No delay passes where a node answers that it has no copy; at last all others are asked."""
    course = Course("ab", more="cd", delay_seconds=FOREVER)
    running = course.start()
    for name in "abc":
        await course.until_asked(name)
        course.asked[name].set_result(None)
    await course.until_asked("d")
    course.asked["d"].set_result("good")
    assert await running == "good"
    assert course.asked_for_more == 1


async def test_nobody_has_it() -> None:
    """None only once everybody has answered, the slow ones too."""
    course = Course("ab", more="c")
    running = course.start()
    for name in "bc":
        await course.until_asked(name)
        course.asked[name].set_result(None)
    await _spin()
    assert not running.done()
    course.asked["a"].set_result(None)
    assert await running is None
    assert course.asked_for_more == 1


async def test_a_slow_answer_counts_while_the_others_have_none() -> None:
    """Whoever was overtaken may still be the only one that has a copy."""
    course = Course("ab")
    running = course.start()
    await course.until_asked("b")
    course.asked["b"].set_result(None)
    await _spin()
    course.asked["a"].set_result("late")
    assert await running == "late"


async def test_the_rest_is_waited_for_when_the_first_has_none() -> None:
    """The question that runs beside goes on as the only one."""
    course = Course("abc", delay_seconds=0.0)
    running = course.start()
    await course.until_asked("b")
    course.asked["a"].set_result(None)
    await course.until_asked("c")
    course.asked["c"].set_result("good")
    assert await running == "good"
    await _spin()
    assert course.cancelled == ["b"]


async def test_only_so_many_are_asked_at_once() -> None:
    """However many hang, a read has few questions under way."""
    course = Course("abcdefgh", gate=ByteGate(100))
    running = course.start()
    await course.until_asked("c")
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert len(course.asked) == RACERS_MAX == 3
    course.asked["c"].set_result(None)
    await course.until_asked("d")
    course.asked["d"].set_result("good")
    assert await running == "good"
    await _spin()
    assert sorted(course.cancelled) == ["a", "b"]
    assert course.gate.inside_bytes == 0


async def test_races_are_bounded_together_and_wait_in_line() -> None:
    """Second questions of all reads share a bound of bytes; who waits for it still hears its first
    node."""
    gate = ByteGate(1)
    one, two, three = Course("ab", gate=gate), Course("ab", gate=gate), Course("ab", gate=gate)
    first, second = one.start(), two.start()
    await one.until_asked("b")
    third = three.start()
    await three.until_asked("a")
    await eventually(lambda: gate.waiting == 2, seconds=60)
    assert "b" not in two.asked
    three.asked["a"].set_result("good")
    assert await third == "good"
    one.asked["b"].set_result("good")
    assert await first == "good"
    await two.until_asked("b")
    two.asked["b"].set_result("good")
    assert await second == "good"
    await _spin()
    assert (gate.inside_bytes, gate.waiting) == (0, 0)


async def test_a_third_node_does_not_wait_in_line() -> None:
    """Who has room beside others never waits for more, or all who have some could wait for ever."""
    gate = ByteGate(2)
    courses = [Course("abc", gate=gate) for _ in range(2)]
    running = [course.start() for course in courses]
    for course in courses:
        await course.until_asked("b")
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert gate.waiting == 0
    assert [course.asked.keys() for course in courses] == [{"a", "b"}] * 2
    for course in courses:
        course.asked["b"].set_result("good")
    assert await asyncio.gather(*running) == ["good", "good"]


async def test_nobody_is_raced_while_this_node_is_short_of_buffers() -> None:
    """A second question would only wait as well; it follows when there are buffers again."""
    course = Course("ab", short=True)
    running = course.start()
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert course.asked.keys() == {"a"}
    course.short = False
    await course.until_asked("b")
    course.asked["b"].set_result("good")
    assert await running == "good"


async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    """All questions end, and no room stays taken."""
    course = Course("abc")
    running = course.start()
    await course.until_asked("b")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _spin()
    assert {"a", "b"} <= set(course.cancelled)
    assert course.gate.inside_bytes == 0


async def test_an_answer_for_a_reader_that_is_gone_is_given_back() -> None:
    """At whichever step between the answer and its way to the reader that one is cancelled: the
    answer is returned, given back, or was never taken from its node."""
    outcomes: list[str] = []
    for steps in range(6):
        course = Course("ab")
        running = course.start()
        await course.until_asked("b")
        course.asked["b"].set_result("good")
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        await _spin()
        assert course.gate.inside_bytes == 0
        if not running.cancelled():
            assert running.result() == "good"
            assert course.discarded == []
            outcomes.append("returned")
        elif "b" in course.cancelled:
            outcomes.append("not taken")
        else:
            assert course.discarded == ["good"]
            outcomes.append("given back")
    assert {"given back", "returned"} <= set(outcomes)


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_two_answers_at_once(order: str) -> None:
    """One is returned, and the other given back, whichever comes first."""
    course = Course("ab")
    running = course.start()
    await course.until_asked("b")
    for name in order:
        course.asked[name].set_result("from " + name)
    answer = await running
    await _spin()
    assert answer in {"from a", "from b"}
    assert running.cancelling() == 0
    left = {"from a", "from b"} - {answer}
    # Given back; or its node was cancelled before it had taken it.
    assert set(course.discarded) == left or course.cancelled == [left.pop()[-1]]
    assert course.gate.inside_bytes == 0


async def test_a_task_that_was_interrupted_can_go_on() -> None:
    """The race leaves no trace of its interruption: time limits around it still work."""
    course = Course("ab")

    async def read() -> str | None:
        async with asyncio.timeout(60):
            running = course.start()
            return await running

    reading = asyncio.ensure_future(read())
    await course.until_asked("b")
    course.asked["b"].set_result("good")
    assert await reading == "good"

    async def inline() -> tuple[str | None, int]:
        task = asyncio.current_task()
        assert task is not None
        race = Course("ab")
        race_coroutine = Race(
            Candidates([_member("a"), _member("b")], race._more),
            ask=race._ask,
            delay=lambda _: 0.0,
            gate=race.gate,
            size=1,
            is_short=lambda: False,
            beaten=lambda *_: None,
            discard=race.discarded.append,
        ).run()
        asyncio.get_running_loop().create_task(_answer(race))
        async with asyncio.timeout(60):
            answer = await race_coroutine
        await asyncio.sleep(0)
        return answer, task.cancelling()

    async def _answer(race: Course) -> None:
        await race.until_asked("b")
        race.asked["b"].set_result("good")

    assert await asyncio.ensure_future(inline()) == ("good", 0)
