"""The worlds that the tests search, and which protection each of them shows to be needed.

Each is as small as it can be while the loss without the protection still fits into it; larger ones
are searched by hand (`python -m tests.model --help`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.world import Scenario


@dataclass(frozen=True)
class Experiment:
    """A scenario that is safe with all rules, and what goes wrong in it without single ones."""

    scenario: Scenario
    loses_without: tuple[str, ...] = ()
    leaks_without: tuple[str, ...] = ()


def _scenario(
    *owners: tuple[int, ...],
    generations: int = 0,
    uploads: int = 1,
    deletions: int = 0,
    restarts: int = 0,
    nodes: int = 2,
    gateways: int = 1,
    leaves: int | None = None,
    has_handoffs: bool = True,
) -> Scenario:
    return Scenario(
        owners=owners,
        generations=generations,
        uploads=uploads,
        deletions=deletions,
        restarts=restarts,
        nodes=nodes,
        gateways=gateways,
        leaves=leaves,
        has_handoffs=has_handoffs,
    )


EXPERIMENTS = {
    # One node, two uploads at once, a restart: generations alone.
    "collection": Experiment(
        _scenario((0,), generations=4, uploads=2, deletions=1, restarts=1, nodes=1, gateways=2),
        loses_without=(
            "commit_is_fenced_by_generation",
            "write_brings_generation",
            "waits_two_generations",
            "deletion_heeds_touches",
            "floor_is_linearizable",
        ),
    ),
    # A second node lags, so that older states than the collector's own are there to be read.
    "reading": Experiment(
        _scenario((0,), generations=2, has_handoffs=False),
        loses_without=("references_are_read_last",),
    ),
    # An old copy at the owner, a newer one at a handoff that goes home.
    "touches": Experiment(
        _scenario((0,), generations=2, uploads=2),
        loses_without=("confirmation_raises_touch", "drop_rechecks_touch"),
    ),
    # The chunk moves away and back, and each node may lag, and restart once.
    "moves": Experiment(
        _scenario((0,), (1,), (0,), deletions=1, restarts=1),
        loses_without=(
            "confirmation_is_fenced_by_epoch",
            "drop_rechecks_epoch",
            "confirmation_stops_deletion",
        ),
        leaks_without=("misplaced_copies_are_dropped",),
    ),
    # The owner leaves; the other had a copy once.
    "departure": Experiment(
        _scenario((1,), (0,), uploads=2, leaves=1),
        loses_without=(
            "write_is_fenced_by_epoch",
            "confirmation_stops_deletion",
            "departure_raises_floor",
            "departure_waits_for_settled",
        ),
    ),
    # A node that stood in leaves.
    "departure of a handoff": Experiment(
        _scenario((0,), (0,), restarts=1, leaves=1),
        loses_without=("departure_raises_floor", "departure_waits_for_settled"),
    ),
    # The owner of before becomes the owner again, and the one between leaves.
    "departure after a move": Experiment(
        _scenario((0,), (1,), (0,), leaves=1),
        loses_without=("settled_waits_for_deletions",),
    ),
    "two copies": Experiment(
        _scenario((0, 1), (1, 2), deletions=1, nodes=3), loses_without=("every_owner_confirms",)
    ),
    "strays": Experiment(
        _scenario((0,), generations=1, deletions=1), leaks_without=("collector_sees_misplaced",)
    ),
    "repair": Experiment(
        _scenario((0, 1), generations=1, deletions=1),
        leaks_without=("repair_skips_collectable", "repair_carries_touch"),
    ),
}
