"""A bound on bytes under way."""

from __future__ import annotations

import asyncio

import pytest

from ring.byte_gate import ByteGate


async def _entering(gate: ByteGate, size: int) -> asyncio.Task[None]:
    task = asyncio.ensure_future(gate.enter(size))
    await asyncio.sleep(0)
    return task


async def test_a_gate_is_bounded_and_fair() -> None:
    """What does not fit waits, and nobody who comes later and is smaller goes first."""
    gate = ByteGate(100)
    await gate.enter(60)
    large, small = await _entering(gate, 50), await _entering(gate, 10)
    assert not large.done()
    assert not small.done()
    assert not gate.try_enter(10)
    assert (gate.inside_bytes, gate.waiting) == (60, 2)
    gate.leave(60)
    await asyncio.gather(large, small)
    assert gate.inside_bytes == 60
    assert gate.try_enter(40)
    assert not gate.try_enter(1)


async def test_what_is_larger_than_the_gate_passes_alone() -> None:
    """A bound never makes something impossible."""
    gate = ByteGate(10)
    await gate.enter(50)
    other = await _entering(gate, 1)
    assert not other.done()
    gate.leave(50)
    await other


@pytest.mark.parametrize("room", ["before", "meanwhile", "after"])
async def test_who_gives_up_waiting_takes_no_room(room: str) -> None:
    """Also not where there is room for it at that very moment; those behind it go on."""
    gate = ByteGate(10)
    await gate.enter(10)
    first, second = await _entering(gate, 10), await _entering(gate, 10)
    if room == "before":
        gate.leave(10)
    first.cancel()
    if room == "meanwhile":
        gate.leave(10)
    with pytest.raises(asyncio.CancelledError):
        await first
    if room == "after":
        gate.leave(10)
    await second
    assert (gate.inside_bytes, gate.waiting) == (10, 0)
