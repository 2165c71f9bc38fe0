"""Commands on how a member moves on: its stage, what is wanted of it, and its way out (rule M7).

An operator says what is wanted (`SetMemberIntent`); the leader carries it out step by step. The
stage `leaving` is the point of no return: it is decided here, on the state at one index, and what
comes after it only has to be repeated until it is done, by whoever leads.
"""

from __future__ import annotations

from metadata_raft import access
from metadata_raft.apply_members import no_such_member, ring_members, stage_of
from metadata_raft.commands import (
    Done,
    Failure,
    ForgetMember,
    ReportSettled,
    Result,
    SetMemberIntent,
    SetMemberStage,
)
from metadata_raft.membership import STAGE_JOINING, STAGE_LEARNER, STAGE_LEAVING, STAGE_VOTER
from metadata_raft.working_state import WorkingState
from ring.members import NodeId

STAGES = frozenset({STAGE_JOINING, STAGE_LEARNER, STAGE_VOTER})

INTENTS = frozenset({"stay", "drain", "leave", "remove"})

DEPARTED_LIMIT = 10_000
"""Ids of removed nodes that are remembered, about 1 MB; the longest gone are forgotten first."""

EPOCHS_FORGOTTEN_LIMIT = 500
"""Epochs that one command forgets at most (rule M2)."""


def set_member_stage(state: WorkingState, command: SetMemberStage) -> Result:
    """Compare and set a member's stage; a repetition finds it there and is done."""
    node_id = command.node_id
    if command.stage not in STAGES and (
        command.stage != STAGE_LEAVING or state.cluster.cluster_version < 2
    ):
        return _invalid(f"'{command.stage[:80]}' is no stage.")
    stage = stage_of(state, node_id)
    if stage is None:
        return no_such_member(node_id)
    if stage != command.expected_stage:
        return _stale(f"Node {node_id} is {stage}, not {command.expected_stage}.")
    if STAGE_LEAVING in (stage, command.stage) and stage != command.stage:
        problem = "is leaving for good" if stage == STAGE_LEAVING else _why_it_stays(state, node_id)
        if problem is not None:
            return _stale(f"Node {node_id} {problem}.")
    if stage != command.stage:
        state.execute("UPDATE members SET stage = ? WHERE node_id = ?", (command.stage, node_id))
        state.cluster.members_version += 1
    return Done()


def set_member_intent(state: WorkingState, command: SetMemberIntent) -> Result:
    """Record what is wanted of a member, where it can be had."""
    node_id, intent = command.node_id, command.intent
    if not access.may_administer(state.role(command.actor)):
        return Failure(code="forbidden", detail="Only an admin key may change members.")
    if intent not in INTENTS:
        return _invalid(f"'{intent[:80]}' is nothing that can be wanted of a member.")
    row = state.execute(
        "SELECT intent, stage FROM members WHERE node_id = ?", (node_id,)
    ).fetchone()
    if row is None:
        return no_such_member(node_id)
    before, stage = row
    if command.expected_intent not in (None, before):
        return _stale(f"Node {node_id} is to {before}, not to {command.expected_intent}.")
    if intent == before:
        return Done()
    if stage == STAGE_LEAVING:
        return _stale(f"Node {node_id} is being removed, which can't be taken back.")
    problem = _too_few(state, command)
    if problem is not None:
        return Failure(code="too_few_nodes", detail=problem)
    state.execute("UPDATE members SET intent = ? WHERE node_id = ?", (intent, node_id))
    state.cluster.members_version += 1
    return Done()


def forget_member(state: WorkingState, command: ForgetMember) -> Result:
    """Drop the row of a member that is leaving and in the ring no more; remember its id."""
    node_id = command.node_id
    stage = stage_of(state, node_id)
    if stage is None:
        known = state.execute("SELECT 1 FROM departed WHERE node_id = ?", (node_id,)).fetchone()
        return no_such_member(node_id) if known is None else Done()
    if stage != STAGE_LEAVING:
        return _stale(f"Node {node_id} is {stage}, not {STAGE_LEAVING}.")
    if node_id in ring_members(state):
        return _stale(f"Node {node_id} is still in the ring.")
    state.execute("DELETE FROM members WHERE node_id = ?", (node_id,))
    state.execute("INSERT INTO departed VALUES (?, ?)", (node_id, state.cluster.time_ms))
    state.execute(
        "DELETE FROM departed WHERE node_id IN (SELECT node_id FROM departed"
        " ORDER BY departed_ms DESC, node_id DESC LIMIT 1 OFFSET ?)",
        (DEPARTED_LIMIT,),
    )
    state.cluster.members_version += 1
    return Done()


def report_settled(state: WorkingState, command: ReportSettled) -> Result:
    """Record the epoch a member has settled, and forget the epochs that all are beyond (D3)."""
    node_id, cluster = command.node_id, state.cluster
    if command.epoch > cluster.epoch:
        return _invalid(f"The ring is in epoch {cluster.epoch}, not yet in {command.epoch}.")
    row = state.execute(
        "SELECT settled_epoch FROM members WHERE node_id = ?", (node_id,)
    ).fetchone()
    if row is None:
        return no_such_member(node_id)
    if command.epoch <= row[0]:
        return Done()
    state.execute(
        "UPDATE members SET settled_epoch = ? WHERE node_id = ?", (command.epoch, node_id)
    )
    cluster.members_version += 1
    settled = _settled_epochs(state)
    state.execute(
        "DELETE FROM epochs WHERE epoch IN"
        " (SELECT epoch FROM epochs WHERE epoch < ? ORDER BY epoch LIMIT ?)",
        (min(settled.values(), default=0), EPOCHS_FORGOTTEN_LIMIT),
    )
    return Done()


def _why_it_stays(state: WorkingState, node_id: NodeId) -> str | None:
    """Why a member may not be removed for good now, as the end of a sentence."""
    intent = _intents(state)[node_id]
    if intent == "remove":
        return None
    if intent != "leave":
        return f"is to {intent}"
    settled = _settled_epochs(state)
    if node_id in settled:
        return "is still in the ring"
    if min(settled.values(), default=0) < state.cluster.epoch:
        return "may still hold copies that others lack"
    return None


def _too_few(state: WorkingState, command: SetMemberIntent) -> str | None:
    """Why too few nodes would be left in the ring, as a sentence."""
    if command.intent == "stay":
        return None
    intents = _intents(state)
    ring = {each for each in ring_members(state) if intents.get(each) == "stay"}
    left = ring - {command.node_id}
    if not left:
        return "No node would be left to hold chunks."
    replicas = state.cluster.replicas
    if command.intent == "remove" or command.reduce_copies or left == ring:
        return None
    if len(left) < replicas:
        return f"Only {len(left)} of the nodes would be left, for {replicas} copies of each chunk."
    return None


def _intents(state: WorkingState) -> dict[NodeId, str]:
    return dict(state.execute("SELECT node_id, intent FROM members").fetchall())


def _settled_epochs(state: WorkingState) -> dict[NodeId, int]:
    """The settled epoch of each member of the current ring."""
    settled = dict(state.execute("SELECT node_id, settled_epoch FROM members").fetchall())
    return {node_id: settled.get(node_id, 0) for node_id in ring_members(state)}


def _stale(detail: str) -> Failure:
    return Failure(code="stale_expectation", detail=detail)


def _invalid(detail: str) -> Failure:
    return Failure(code="invalid_command", detail=detail)
