"""What becomes of members, ring epochs and settings, in plain dicts; part of `state_model.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from metadata_raft.commands import (
    AdmitMember,
    ChangeRing,
    Command,
    CreateJoinToken,
    ForgetMember,
    ReportSettled,
    ResumeCollection,
    SetClusterSettings,
    SetMemberIntent,
    SetMemberStage,
)

REPLICAS = 3


@dataclass
class ModelMember:
    stage: str = "joining"
    intent: str = "stay"
    settled: int = 0


@dataclass
class MemberModel:
    """The members of one admin's cluster, by node id; `first` has founded it."""

    first: str
    members: dict[str, ModelMember] = field(default_factory=dict)
    departed: set[str] = field(default_factory=set)
    epochs: dict[int, frozenset[str]] = field(default_factory=dict)
    epoch: int = 1
    epoch_floor: int = 0
    spent: dict[str, str | None] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members[self.first] = ModelMember(stage="voter")
        self.epochs[1] = frozenset({self.first})

    @property
    def ring(self) -> frozenset[str]:
        return self.epochs[self.epoch]

    def apply(self, command: Command) -> str | None:
        """What comes of a command; None where it is not about members."""
        match command:
            case CreateJoinToken():
                self.spent.setdefault(command.token_id, None)
                return "done"
            case AdmitMember():
                return self._admit(command.token_id, command.member.node_id)
            case SetMemberStage():
                return self._stage(command)
            case ChangeRing():
                return self._change_ring(command)
            case SetMemberIntent():
                return self._intend(command)
            case ForgetMember(node_id=node_id):
                return self._forget(node_id)
            case ReportSettled():
                return self._settled(command.node_id, command.epoch)
            case SetClusterSettings():
                for name, value in command.settings.items():
                    self.settings.pop(name, None)
                    if value is not None:
                        self.settings[name] = value
                return "done"
            case ResumeCollection():
                return "done"
        return None

    def _admit(self, token_id: str, node_id: str) -> str:
        spent_by = self.spent.get(token_id, "")
        if spent_by == "":
            return "token_invalid"
        if node_id in self.departed:
            return "member_removed"
        if spent_by is not None:
            return "done" if spent_by == node_id and node_id in self.members else "token_invalid"
        self.spent[token_id] = node_id
        self.members.setdefault(node_id, ModelMember())
        return "done"

    def _stage(self, command: SetMemberStage) -> str:
        member = self.members.get(command.node_id)
        if member is None:
            return "no_such_member"
        if member.stage != command.expected_stage:
            return "stale_expectation"
        if member.stage == "leaving" != command.stage:
            return "stale_expectation"
        if command.stage == "leaving" != member.stage:
            settled = [self.members[each].settled for each in self.ring if each in self.members]
            may_leave = command.node_id not in self.ring and min(settled) >= self.epoch
            if member.intent != "remove" and not (member.intent == "leave" and may_leave):
                return "stale_expectation"
        member.stage = command.stage
        return "done"

    def _change_ring(self, command: ChangeRing) -> str:
        if command.expected_epoch != self.epoch:
            return "stale_expectation"
        if not set(command.node_ids) <= set(self.members):
            return "no_such_member"
        self.epoch += 1
        self.epochs[self.epoch] = frozenset(command.node_ids)
        if command.raise_floor:
            self.epoch_floor = self.epoch
        return "ring"

    def _intend(self, command: SetMemberIntent) -> str:
        member = self.members.get(command.node_id)
        if member is None:
            return "no_such_member"
        if command.expected_intent not in (None, member.intent):
            return "stale_expectation"
        if command.intent == member.intent:
            return "done"
        if member.stage == "leaving":
            return "stale_expectation"
        if command.intent != "stay":
            before = {
                each
                for each in self.ring
                if each in self.members and self.members[each].intent == "stay"
            }
            after = before - {command.node_id}
            strict = command.intent != "remove" and not command.reduce_copies and after != before
            if not after or (strict and len(after) < REPLICAS):
                return "too_few_nodes"
        member.intent = command.intent
        return "done"

    def _forget(self, node_id: str) -> str:
        member = self.members.get(node_id)
        if member is None:
            return "done" if node_id in self.departed else "no_such_member"
        if member.stage != "leaving" or node_id in self.ring:
            return "stale_expectation"
        del self.members[node_id]
        self.departed.add(node_id)
        return "done"

    def _settled(self, node_id: str, epoch: int) -> str:
        if epoch > self.epoch:
            return "invalid_command"
        member = self.members.get(node_id)
        if member is None:
            return "no_such_member"
        if epoch > member.settled:
            member.settled = epoch
            settled = [self.members[each].settled for each in self.ring if each in self.members]
            for former in [each for each in self.epochs if each < min(settled)]:
                del self.epochs[former]
        return "done"
