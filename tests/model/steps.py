"""All that may happen next in a state: every step of every node, gateway and the cluster.

Each step is one that the product takes in one go: under one lock, in one transaction, or between
two awaits. So whatever order the product can come to, the search comes to as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.world import (
    ABSENT,
    COLLECT,
    COLLECTABLE_AFTER,
    DROP,
    GONE,
    KEEP,
    LONG_AGO,
    Cluster,
    Gateway,
    Node,
    Rules,
    Scenario,
    State,
)

Step = tuple[str, State]
"""What happens, in words, and what comes of it (not simplified yet)."""


def steps(state: State, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    yield from _cluster_steps(state, scenario, rules)
    yield from _gateway_steps(state, scenario, rules)
    for number, node in enumerate(state.nodes):
        if node.applied != GONE:
            yield from _life_steps(state, number, node, rules)
            yield from _copy_steps(state, number, node, scenario, rules)
            yield from _drop_steps(state, number, node, scenario, rules)


# --- the replicated state ----------------------------------------------------------------------


def _cluster_steps(state: State, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    latest, left = state.prefixes[-1], state.left
    if left.generations:
        after = latest._replace(generation=latest.generation + 1)
        yield (
            "the generation advances",
            state._replace(
                prefixes=(*state.prefixes, after),
                left=left._replace(generations=left.generations - 1),
            ),
        )
    if left.deletions and latest.is_referenced:
        yield (
            "the file is deleted",
            state._replace(
                prefixes=(*state.prefixes, latest._replace(is_referenced=False)),
                left=left._replace(deletions=left.deletions - 1),
            ),
        )
    if left.epochs:
        epoch = latest.epoch + 1
        departs = scenario.leaves is not None and left.epochs == 1
        floor = epoch if departs and rules.departure_raises_floor else latest.floor
        yield (
            f"epoch {epoch} begins",
            state._replace(
                prefixes=(*state.prefixes, latest._replace(epoch=epoch, floor=floor)),
                left=left._replace(epochs=left.epochs - 1),
            ),
        )
    elif scenario.leaves is not None and state.nodes[scenario.leaves].applied != GONE:
        ring = scenario.owners[latest.epoch]
        waits = rules.departure_waits_for_settled
        if not waits or all(state.nodes[owner].settled == latest.epoch for owner in ring):
            gone = Node(GONE, ABSENT, False, KEEP, -1, 0, -1)
            yield f"node {scenario.leaves} leaves", _with(state, scenario.leaves, gone)


# --- gateways ----------------------------------------------------------------------------------


def _gateway_steps(state: State, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    prefixes, left = state.prefixes, state.left
    if left.uploads and len(state.gateways) < scenario.gateways:
        begun = left._replace(uploads=left.uploads - 1)
        # The generation is read first, the ring later; both as some node knows them.
        views = {
            (earlier.generation, later.epoch)
            for at, earlier in enumerate(prefixes)
            for later in prefixes[at:]
        }
        for generation, epoch in views:
            yield (
                f"an upload begins in generation {generation}, epoch {epoch}",
                state._replace(
                    gateways=(*state.gateways, Gateway(generation, epoch, 0)), left=begun
                ),
            )
    for at, gateway in enumerate(state.gateways):
        others = (*state.gateways[:at], *state.gateways[at + 1 :])
        yield "an upload is given up", state._replace(gateways=others)
        yield from _writes(state, gateway, others, scenario, rules)
        if gateway.acknowledged.bit_count() >= scenario.quorum:
            latest = prefixes[-1]
            is_old = latest.generation > gateway.generation + 1
            refused = rules.commit_is_fenced_by_generation and is_old
            if not refused and gateway.epoch >= latest.floor:
                after = latest._replace(is_referenced=True)
                yield (
                    "an upload is committed",
                    state._replace(prefixes=(*prefixes, after), gateways=others),
                )


def _writes(
    state: State,
    gateway: Gateway,
    others: tuple[Gateway, ...],
    scenario: Scenario,
    rules: Rules,
) -> Iterator[Step]:
    """One copy is written, or found there and touched: an acknowledgement either way."""
    for number, node in enumerate(state.nodes):
        if node.applied == GONE or gateway.acknowledged >> number & 1:
            continue
        if not scenario.may_take(number, gateway.epoch):
            continue
        here = state.prefixes[node.applied]
        if rules.write_is_fenced_by_epoch and here.epoch != gateway.epoch:
            continue
        touch = here.generation
        if rules.write_brings_generation:
            touch = max(touch, gateway.generation)
        after = touched(node, touch, rules)
        heard = gateway._replace(acknowledged=gateway.acknowledged | 1 << number)
        yield (
            f"node {number} takes a copy",
            _with(state, number, after)._replace(gateways=(*others, heard)),
        )


# --- nodes -------------------------------------------------------------------------------------


def _life_steps(state: State, number: int, node: Node, rules: Rules) -> Iterator[Step]:
    if node.applied < len(state.prefixes) - 1:
        applied = node.applied + 1
        yield (
            f"node {number} applies an entry",
            _with(state, number, node._replace(applied=applied)),
        )
    if state.left.restarts:
        left = state.left._replace(restarts=state.left.restarts - 1)
        # A power cut may take what was applied and not synced; the log brings it back.
        for applied in range(node.applied + 1):
            touch = node.touch if node.touch == ABSENT else LONG_AGO
            knows = False
            if not rules.floor_is_linearizable:
                knows = True
                if touch != ABSENT:
                    touch = state.prefixes[applied].generation
            after = Node(applied, touch, knows, KEEP, -1, 0, node.settled)
            yield f"node {number} restarts", _with(state, number, after)._replace(left=left)
    if not node.knows_floor:
        newest = len(state.prefixes) - 1
        touch = node.touch
        if touch != ABSENT:
            touch = max(touch, state.prefixes[newest].generation)
        after = node._replace(applied=newest, touch=touch, knows_floor=True)
        yield f"node {number} reads the floor", _with(state, number, after)


def _copy_steps(
    state: State, number: int, node: Node, scenario: Scenario, rules: Rules
) -> Iterator[Step]:
    here = state.prefixes[node.applied]
    owners = scenario.owners[here.epoch]
    if node.touch == ABSENT:
        if number in owners:
            for source in state.nodes:
                touch = repaired_touch(source, here, rules)
                if touch is not None:
                    after = node._replace(touch=touch)
                    yield f"node {number} fetches a copy", _with(state, number, after)
                    break
    else:
        if node.judged == KEEP and is_collectable(state, number, scenario, rules):
            yield (
                f"node {number} decides to collect",
                _with(state, number, node._replace(judged=COLLECT)),
            )
        if node.judged != KEEP:
            yield (
                f"node {number} deletes",
                _with(state, number, node._replace(touch=ABSENT, judged=KEEP, confirmed=0)),
            )
    if scenario.leaves is not None and number in owners and node.settled < here.epoch:
        has_all = node.touch != ABSENT or not here.is_referenced
        if has_all and (node.judged == KEEP or not rules.settled_waits_for_deletions):
            yield (
                f"node {number} says it is settled",
                _with(state, number, node._replace(settled=here.epoch)),
            )


def _drop_steps(
    state: State, number: int, node: Node, scenario: Scenario, rules: Rules
) -> Iterator[Step]:
    """Rule D5: a copy that the current epoch does not want here."""
    here = state.prefixes[node.applied]
    owners = scenario.owners[here.epoch]
    if node.touch == ABSENT or not rules.misplaced_copies_are_dropped:
        return
    if number not in owners and node.knows_floor:
        asker = node
        if node.asked_epoch != here.epoch:
            asker = node._replace(asked_epoch=here.epoch, confirmed=0)
        for owner in owners:
            other = state.nodes[owner]
            if asker.confirmed >> owner & 1 or other.applied == GONE or other.touch == ABSENT:
                continue
            at_same_epoch = state.prefixes[other.applied].epoch == here.epoch
            if at_same_epoch or not rules.confirmation_is_fenced_by_epoch:
                asked = asker._replace(confirmed=asker.confirmed | 1 << owner)
                touch = node.touch if rules.confirmation_raises_touch else LONG_AGO
                confirmed = touched(other, touch, rules)
                yield (
                    f"node {owner} confirms the copy of node {number}",
                    _with(_with(state, number, asked), owner, confirmed),
                )
    wanted = sum(1 << owner for owner in scenario.owners[node.asked_epoch])
    has_heard = node.confirmed == wanted if rules.every_owner_confirms else node.confirmed != 0
    is_current = node.asked_epoch == here.epoch or not rules.drop_rechecks_epoch
    if has_heard and is_current and node.judged == KEEP:
        yield f"node {number} decides to drop", _with(state, number, node._replace(judged=DROP))


# --- rules that two steps share -----------------------------------------------------------------


def touched(node: Node, touch: int, rules: Rules) -> Node:
    """A node whose copy is written, or found there and confirmed, with a touch."""
    if node.touch == ABSENT:
        return node._replace(touch=touch)
    judged, confirmed = node.judged, node.confirmed
    if touch > node.touch:
        if rules.deletion_heeds_touches:
            judged = KEEP
        if rules.drop_rechecks_touch:
            confirmed = 0
    elif rules.confirmation_stops_deletion:
        judged = KEEP
    return node._replace(touch=max(touch, node.touch), judged=judged, confirmed=confirmed)


def is_collectable(state: State, number: int, scenario: Scenario, rules: Rules) -> bool:
    """Rule D4, as the node sees it."""
    node = state.nodes[number]
    here = state.prefixes[node.applied]
    if not node.knows_floor or node.touch == ABSENT:
        return False
    if not rules.collector_sees_misplaced and number not in scenario.owners[here.epoch]:
        return False
    if rules.references_are_read_last:
        is_referenced = here.is_referenced
    else:
        is_referenced = all(each.is_referenced for each in state.prefixes[: node.applied + 1])
    wait = COLLECTABLE_AFTER if rules.waits_two_generations else 1
    return not is_referenced and here.generation >= node.touch + wait


def repaired_touch(source: Node, here: Cluster, rules: Rules) -> int | None:
    """The touch of a copy that an owner fetches from `source`; None where it does not (D10)."""
    if source.touch == ABSENT or source.applied == GONE:
        return None
    is_collectable_there = here.generation >= source.touch + COLLECTABLE_AFTER
    if rules.repair_skips_collectable and not here.is_referenced and is_collectable_there:
        return None
    if not rules.repair_carries_touch:
        return here.generation
    # The source may not tell its touch; what is referenced then gets the lowest: the worst case.
    return LONG_AGO if here.is_referenced else source.touch


def _with(state: State, number: int, node: Node) -> State:
    nodes = state.nodes
    return state._replace(nodes=(*nodes[:number], node, *nodes[number + 1 :]))
