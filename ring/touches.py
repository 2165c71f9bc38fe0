"""When each chunk was last written or confirmed, in generations (rule D4). Pure bookkeeping.

The touch a chunk was written with stands in its index row; what raises it later is kept here, in
memory only. So after a start the touches may be too low, and none is told until a floor has been
given: the generation before which, as a linearizable read has shown, no reference can be created
any more. The memory is bounded: when there are too many touches the older ones are forgotten and
the floor rises to them, which can only delay a deletion.
"""

from __future__ import annotations

TOUCHES_LIMIT = 131_072
"""Raised touches remembered one by one: about 20 MB."""

COLLECTABLE_AFTER = 2
"""A chunk may go when the generation is this much above its touch (rule D4)."""


class Touches:
    """What raised the touches of chunks. Not locked: the store's catalog does that."""

    def __init__(self, *, limit: int = TOUCHES_LIMIT) -> None:
        self._limit = limit
        self._raised: dict[bytes, int] = {}
        self._newest = 0
        self._base = 0
        self._is_floor_known = False

    @property
    def floor(self) -> int | None:
        """The generation before which no chunk counts as touched; None until it was given."""
        return self._base if self._is_floor_known else None

    def of(self, chunk_id: bytes, written: int) -> int | None:
        """Return the touch of a chunk written with `written`; None until the floor is known."""
        if not self._is_floor_known:
            return None
        return max(self._base, written, self._raised.get(chunk_id, 0))

    def raise_to(self, chunk_id: bytes, touch: int) -> None:
        """Set a chunk's touch to max(old, `touch`)."""
        if touch > max(self._base, self._raised.get(chunk_id, 0)):
            self._raised[chunk_id] = touch
            self._newest = max(self._newest, touch)
            if len(self._raised) > self._limit:
                self._make_room()

    def raise_floor(self, generation: int) -> None:
        """No chunk counts as touched before `generation` from now on."""
        self._is_floor_known = True
        self._raise_base(generation)

    def forget(self, chunk_id: bytes) -> None:
        """The chunk is deleted."""
        self._raised.pop(chunk_id, None)

    def _raise_base(self, generation: int) -> None:
        self._base = max(self._base, generation)
        self._raised = {
            chunk_id: touch for chunk_id, touch in self._raised.items() if touch > self._base
        }

    def _make_room(self) -> None:
        # A base that is collectable anyway delays nothing. One at the newest touch does, by as
        # much as two generations, but always makes room.
        self._raise_base(self._newest - COLLECTABLE_AFTER)
        if len(self._raised) > self._limit // 2:
            self._raise_base(self._newest)
