"""How fast a node moves copies: bytes per second as the operator sets them, clients first.

One `Throttle` paces all that a node fetches or sends for repair and rebalancing. Rates are asked
for anew all the time, so a change takes effect at once, also for who is waiting. While clients are
being served, here or on the nodes that copies come from, only a part of the rate is used, and no
more than another one that is for such times.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

CLIENT_SECONDS = 1.0
"""For how long a node counts as serving clients after it last did something for one: long enough
that a client which sends one request after the other is noticed as one that is there."""

CLIENTS_DIVISOR = 4
"""The part of the rate that is left for copies while clients are served."""

BURST_SECONDS = 0.1
"""How much may be taken ahead, in seconds of the rate: pauses shorter than this say nothing."""

LOOK_SECONDS = 0.25
"""The longest a waiter sleeps before it asks for the rate again."""

PAUSE_SECONDS_MIN = 0.001
"""The shortest: nobody wakes up on time for less."""

METER_SECONDS = 10.0
"""Over about how long a speed is averaged."""

Clock = Callable[[], float]


class ClientActivity:
    """Remembers when this node last did something for a client. Event loop only."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._noted_at = -math.inf

    def note(self) -> None:
        """A request began or ended, or a part of its contents was moved."""
        self._noted_at = self._clock()

    def active(self) -> bool:
        return self._clock() - self._noted_at < CLIENT_SECONDS


class Throttle:
    """A token bucket. `rate` is asked for bytes per second; `clients` for whether any are being
    served; `beside_clients` for the most while they are. 0 is no limit."""

    def __init__(
        self,
        rate: Callable[[], int],
        *,
        clients: Callable[[], bool],
        beside_clients: Callable[[], int] = lambda: 0,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clients = clients
        self._beside_clients = beside_clients
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._debt = 0.0
        """Bytes taken that the rate has not yet paid for."""
        self._paid_at = clock()

    def serves_clients(self) -> bool:
        """Whether clients are being served, so that all else should take its time."""
        return self._clients()

    def bytes_per_second(self) -> float:
        """What may be moved at present; infinite without a limit."""
        rate = self._rate() or math.inf
        if self._clients():
            return min(rate / CLIENTS_DIVISOR, self._beside_clients() or math.inf)
        return rate

    async def wait(self, size: int) -> None:
        """Return when `size` bytes may be moved; those who wait get their turns in order."""
        async with self._turn:
            while True:
                rate = self.bytes_per_second()
                ahead = self._pay(rate) - rate * BURST_SECONDS
                if ahead <= 0 or math.isinf(rate):
                    break
                await self._sleep(min(max(ahead / rate, PAUSE_SECONDS_MIN), LOOK_SECONDS))
            self._debt += size

    def _pay(self, rate: float) -> float:
        """Let the time since the last look pay for what was taken; returns what is left to pay."""
        now = self._clock()
        if math.isinf(rate):
            self._debt = 0.0
        else:
            self._debt = max(0.0, self._debt - (now - self._paid_at) * rate)
        self._paid_at = now
        return self._debt


class SpeedMeter:
    """Bytes per second over the last `METER_SECONDS`, older ones counting less."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._bytes = 0.0
        self._at = clock()

    def add(self, size: int) -> None:
        self._fade()
        self._bytes += size

    def bytes_per_second(self) -> float:
        self._fade()
        return self._bytes / METER_SECONDS

    def _fade(self) -> None:
        now = self._clock()
        self._bytes *= math.exp((self._at - now) / METER_SECONDS)
        self._at = now
