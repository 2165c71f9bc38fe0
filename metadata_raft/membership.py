"""Who should vote, step by step: the plan the leader carries out (rule M7).

A node that was admitted (stage `joining` in the replicated state) becomes a learner, receives the
log, and when it has caught up becomes a voter, if one more voter helps. A node whose stage is
`leaving` is removed; if it leads, it hands over first. A voter that has been silent for minutes
gives its vote to a learner that answers. Each step is one entry in the log and waits for the one
before it; the stages in the state follow the configuration in force, so that an interrupted join
or departure goes on wherever the next leader finds it. Pure: the leader's view is the argument, one
step the result.

No step leaves voters of which no majority answers: that would stop the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metadata_raft.configuration import VOTER_LIMIT, Configuration
from ring.members import NodeId

CAUGHT_UP_ENTRIES = 16
"""A member this close behind the log's end is at its end in a moment, even under load."""

ANSWERING_SECONDS = 1.0
"""A member that has not answered for this long is not counted on."""

STAGE_JOINING, STAGE_LEARNER, STAGE_VOTER = "joining", "learner", "voter"
STAGE_LEAVING = "leaving"
"""Recorded before the configuration lets go of the node; the others follow the configuration."""


@dataclass(frozen=True, slots=True)
class MemberView:
    """How another member stands, as the leader sees it."""

    match_index: int
    """0 until it has acknowledged anything to this leader."""
    heard_seconds_ago: float
    """Counted from the beginning of this leadership at the earliest."""


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


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let this voter lead: the leader itself is leaving, and only another one can remove it."""

    node_id: NodeId


Step = ChangeConfiguration | RecordStage | HandOver


def voters_wanted(member_count: int) -> int:
    """The largest odd number of members up to the limit; two nodes both vote, or one of them
    could lose what the other never had."""
    if member_count <= 2:
        return member_count
    return min(VOTER_LIMIT, member_count - 1 + member_count % 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """The leader's view of the group; `next_step` says what to do about it."""

    leader: NodeId
    configuration: Configuration
    stages: Mapping[NodeId, str]
    """The committed records of the state."""
    members: Mapping[NodeId, MemberView]
    """Of the configuration, without the leader."""
    last_index: int
    voter_gone_seconds: float

    def next_step(self) -> Step | None:
        """The next step; None where everything is as it should be or has to wait."""
        if self.leader not in self.stages:
            return None  # A new cluster, or clients keep all the readers busy: nothing is known.
        return (
            self._record()
            or self._remove()
            or self._add_learner()
            or self._promote()
            or self._demote()
        )

    def _record(self) -> Step | None:
        """The stages follow the configuration, but for those that leave."""
        for node_id, stage in sorted(self.stages.items()):
            actual = stage_of(node_id, self.configuration)
            if actual not in (None, stage) and stage != STAGE_LEAVING:
                return RecordStage(node_id, actual, stage)
        return None

    def _remove(self) -> Step | None:
        """Take one that leaves out of the configuration; the leader itself is the last."""
        leaving = sorted(
            (node_id for node_id in self.stages if self._leaves(node_id)),
            key=lambda node_id: (node_id == self.leader, node_id),
        )
        for node_id in leaving:
            if node_id == self.leader:
                return self._hand_over()
            changed = self.configuration.without(node_id)
            if changed != self.configuration and self._majority_answers(changed):
                return ChangeConfiguration(changed)
        return None

    def _hand_over(self) -> Step | None:
        for voter in self.configuration.voters:
            if voter != self.leader and not self._leaves(voter) and self._is_ready(voter):
                return HandOver(voter)
        return None

    def _add_learner(self) -> Step | None:
        configuration = self.configuration
        for node_id in sorted(self.stages):
            if (
                node_id not in configuration.members
                and node_id not in configuration.removed
                and not self._leaves(node_id)
            ):
                return ChangeConfiguration(configuration.with_learner(node_id))
        return None

    def _promote(self) -> Step | None:
        """One more voter where one more helps: recorded, caught up, answering; the first listed."""
        if self._surplus() < 0:
            for node_id in self._ready_learners():
                changed = self.configuration.with_voter(node_id)
                if self._majority_answers(changed):
                    return ChangeConfiguration(changed)
        return None

    def _demote(self) -> Step | None:
        """A voter that is gone gives way to a learner that answers; so does one too many."""
        silent = sorted(
            (voter for voter in self.configuration.voters if voter != self.leader),
            key=lambda voter: -self._silence(voter),
        )
        replaceable = bool(self._ready_learners())
        for voter in silent:
            gone = self._silence(voter) >= self.voter_gone_seconds
            changed = self.configuration.with_demoted(voter)
            if (
                ((gone and replaceable) or self._surplus() > 0)
                and not self._leaves(voter)
                and self._majority_answers(changed)
            ):
                return ChangeConfiguration(changed)
        return None

    def _surplus(self) -> int:
        """How many voters there are too many, of those that stay."""
        staying = [node_id for node_id in self.configuration.members if not self._leaves(node_id)]
        voters = [node_id for node_id in staying if node_id in self.configuration.voters]
        return len(voters) - voters_wanted(len(staying))

    def _ready_learners(self) -> list[NodeId]:
        return [
            node_id
            for node_id in self.configuration.learners
            if node_id in self.stages and not self._leaves(node_id) and self._is_ready(node_id)
        ]

    def _is_ready(self, node_id: NodeId) -> bool:
        """Whether it answers and has the log, but for a few entries."""
        view = self.members.get(node_id)
        return (
            view is not None
            and self._answers(node_id)
            and view.match_index + CAUGHT_UP_ENTRIES >= self.last_index
        )

    def _majority_answers(self, configuration: Configuration) -> bool:
        answering = [
            voter for voter in configuration.voters if voter == self.leader or self._answers(voter)
        ]
        return len(answering) >= configuration.majority()

    def _answers(self, node_id: NodeId) -> bool:
        """Whether it answered this leader, and lately. In the first second of a leadership nobody
        has been silent for long, a dead one neither."""
        view = self.members.get(node_id)
        if view is None or view.match_index == 0:
            return False
        return view.heard_seconds_ago < ANSWERING_SECONDS

    def _silence(self, node_id: NodeId) -> float:
        view = self.members.get(node_id)
        return float("inf") if view is None else view.heard_seconds_ago

    def _leaves(self, node_id: NodeId) -> bool:
        return self.stages.get(node_id) == STAGE_LEAVING


def stage_of(node_id: NodeId, configuration: Configuration) -> str | None:
    """The stage a configuration gives a node, None where it is not in it."""
    if node_id in configuration.voters:
        return STAGE_VOTER
    return STAGE_LEARNER if node_id in configuration.learners else None
