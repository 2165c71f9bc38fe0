"""Who should vote, step by step: the plan the leader carries out (rule M7).

A node that was admitted (stage `joining` in the replicated state) becomes a learner, receives the
log, and when it has caught up becomes a voter, if one more voter helps. Each step is one entry in
the log and waits for the one before it; the stages in the state follow the configuration in force,
never lead it, so that an interrupted join goes on wherever the next leader finds it. Pure: the
leader's view is the argument, one step the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metadata_raft.configuration import VOTER_LIMIT, Configuration
from ring.members import NodeId

CAUGHT_UP_ENTRIES = 16
"""A learner this close behind the log's end is at its end in a moment, even under load."""

ANSWERING_SECONDS = 1.0
"""A learner that has not answered for this long is not promoted."""

STAGE_JOINING, STAGE_LEARNER, STAGE_VOTER = "joining", "learner", "voter"
STAGE_LEAVING = "leaving"
"""Recorded before the configuration lets go of the node; the others follow the configuration."""


@dataclass(frozen=True, slots=True)
class LearnerView:
    """How a learner stands, as the leader sees it."""

    match_index: int
    """0 until it has acknowledged anything to this leader."""
    heard_seconds_ago: float


@dataclass(frozen=True, slots=True)
class ChangeConfiguration:
    """Append this configuration to the log."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class RecordStage:
    """Propose that the state records this stage."""

    node_id: NodeId
    stage: str
    expected_stage: str


Step = ChangeConfiguration | RecordStage


def voters_wanted(member_count: int) -> int:
    """The largest odd number of members up to the limit; two nodes both vote, or one of them
    could lose what the other never had."""
    if member_count <= 2:
        return member_count
    return min(VOTER_LIMIT, member_count - 1 + member_count % 2)


def next_step(
    *,
    configuration: Configuration,
    stages: Mapping[NodeId, str],
    learners: Mapping[NodeId, LearnerView],
    last_index: int,
) -> Step | None:
    """Return the next step, None where everything is as it should be or has to wait.

    `stages` are the committed records of the state; `learners` holds the leader's view of each
    learner of the configuration.
    """
    for node_id, stage in sorted(stages.items()):
        actual = stage_of(node_id, configuration)
        if actual is not None and actual != stage:
            return RecordStage(node_id, actual, stage)
    for node_id in sorted(stages):
        if node_id not in configuration.members and node_id not in configuration.removed:
            return ChangeConfiguration(configuration.with_learner(node_id))
    if len(configuration.voters) < voters_wanted(len(configuration.members)):
        for node_id in _ready(configuration.learners, stages, learners, last_index):
            return ChangeConfiguration(configuration.with_voter(node_id))
    return None


def stage_of(node_id: NodeId, configuration: Configuration) -> str | None:
    """The stage a configuration gives a node, None where it is not in it."""
    if node_id in configuration.voters:
        return STAGE_VOTER
    return STAGE_LEARNER if node_id in configuration.learners else None


def _ready(
    names: Sequence[NodeId],
    stages: Mapping[NodeId, str],
    learners: Mapping[NodeId, LearnerView],
    last_index: int,
) -> list[NodeId]:
    """The learners that may vote now: recorded, caught up, answering; the longest listed first."""
    return [
        name
        for name in names
        if name in stages
        and name in learners
        and learners[name].match_index > 0
        and learners[name].match_index + CAUGHT_UP_ENTRIES >= last_index
        and learners[name].heard_seconds_ago < ANSWERING_SECONDS
    ]
