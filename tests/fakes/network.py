"""A network in memory with virtual time: seeded, so that a run replays exactly.

Messages are encoded and decoded like real ones, delayed, and with the given chances dropped,
doubled, or overtaken by later ones: worse than TCP, which Raft must survive all the same. Links can
be cut in either direction, with or without the two sides noticing.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from metadata_raft.messages import Message, decode_message, encode_message
from ring.members import NodeId


class Endpoint(Protocol):
    """A node on the network."""

    def deliver(self, sender: NodeId, message: Message) -> None: ...

    def peer_connected(self, node_id: NodeId) -> None: ...

    def peer_lost(self, node_id: NodeId) -> None: ...


@dataclass
class Weather:
    """How bad the network is; chances between 0 and 1, times in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_min: float = 0.0002
    delay_max: float = 0.001
    slow: float = 0.0
    """Chance of a message that takes up to `slow_max`, so that others overtake it."""
    slow_max: float = 0.3


@dataclass
class SimulatedNetwork:
    """Virtual time and the messages under way. `now` is in seconds."""

    generator: random.Random
    weather: Weather = field(default_factory=Weather)
    now: float = 1000.0
    endpoints: dict[NodeId, Endpoint] = field(default_factory=dict)
    cut: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    """Directions in which nothing arrives."""
    delivered: list[tuple[NodeId, NodeId, Message]] = field(default_factory=list)
    keep_delivered: bool = False
    on_deliver: Callable[[NodeId, NodeId, Message], bool] = lambda *_: True
    """Return False to lose a message; a test's own malice."""

    on_transmit: Callable[[NodeId, NodeId, Message], None] = lambda *_: None
    """Sees every message at the moment it leaves its sender."""

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, limit: float = 30.0) -> None:
        """Let time pass until a condition holds; fails after `limit` seconds of virtual time."""
        end = self.now + limit
        while not condition():
            assert self._events, "nothing will ever happen any more"
            assert self.now < end, f"the condition did not hold within {limit} s"
            self.now, _, action = heapq.heappop(self._events)
            action()

    def is_linked(self, source: NodeId, target: NodeId) -> bool:
        return target in self.endpoints and (source, target) not in self.cut

    def transmit(self, source: NodeId, target: NodeId, message: Message) -> None:
        self.on_transmit(source, target, message)
        weather, chance = self.weather, self.generator.random
        if not self.is_linked(source, target) or chance() < weather.drop:
            return
        copies = 2 if chance() < weather.duplicate else 1
        encoded = encode_message(message)
        for _ in range(copies):
            delay = self.generator.uniform(weather.delay_min, weather.delay_max)
            if chance() < weather.slow:
                delay += self.generator.uniform(0, weather.slow_max)
            self.after(delay, lambda: self._arrive(source, target, encoded))

    def _arrive(self, source: NodeId, target: NodeId, encoded: bytes) -> None:
        if not self.is_linked(source, target):
            return
        message = decode_message(encoded)
        if not self.on_deliver(source, target, message):
            return
        if self.keep_delivered:
            self.delivered.append((source, target, message))
        self.endpoints[target].deliver(source, message)

    def partition(self, *sides: Iterable[NodeId], noticed: bool) -> None:
        """Let nothing pass between the sides; `noticed` closes the connections as well."""
        groups = [set(side) for side in sides]
        for one, other in itertools.permutations(groups, 2):
            for source, target in itertools.product(sorted(one), sorted(other)):
                self.cut.add((source, target))
                if noticed and target in self.endpoints:
                    self.endpoints[target].peer_lost(source)

    def heal(self) -> None:
        """Let everything pass again; everybody reconnects."""
        healed, self.cut = sorted(self.cut), set()
        for source, target in healed:
            if source in self.endpoints and target in self.endpoints:
                self.endpoints[source].peer_connected(target)

    def leave(self, node_id: NodeId) -> None:
        """A node is gone: the others see its connections close."""
        del self.endpoints[node_id]
        for endpoint in list(self.endpoints.values()):
            endpoint.peer_lost(node_id)

    def join(self, node_id: NodeId, endpoint: Endpoint) -> None:
        others = list(self.endpoints.items())
        self.endpoints[node_id] = endpoint
        for other_id, other in others:
            other.peer_connected(node_id)
            endpoint.peer_connected(other_id)


@dataclass
class SimulatedLinks:
    """A replica's `Links` over the network; `send` waits for `flush`, as the transport does."""

    network: SimulatedNetwork
    node_id: NodeId

    def __post_init__(self) -> None:
        self._queued: list[tuple[NodeId, Message]] = []

    def send(self, node_id: NodeId, message: Message) -> None:
        self._queued.append((node_id, message))

    def can_send(self, node_id: NodeId) -> bool:
        return node_id in self.network.endpoints

    def flush(self) -> None:
        queued, self._queued = self._queued, []
        for node_id, message in queued:
            self.network.transmit(self.node_id, node_id, message)
