"""Whatever a command says, it gets an answer, and the state stays sound."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from metadata_raft.commands import Command, Failure, SetClusterVersion
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import ADMIN, Replica, chunk_list

NUMBERS = [0, 1, 2, 1000, 4096, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]
TEXTS = [
    *(
        "",
        "a",
        "a/b",
        "/",
        "..",
        "\0",
        "default",
        "photos",
        "*",
        "e-1",
        "é😀",
        "x" * 300,
        "y" * 2000,
    ),
    *(ADMIN, "system", "admin", "writer", "joining", "learner", "voter", "public-read"),
    *("leaving", "stay", "drain", "leave", "remove", "repair_bytes_per_second"),
    make_member(1).node_id,
    make_member(2).node_id,
]
BYTES = [
    b"",
    bytes(16),
    bytes(32),
    b"\1" * 16,
    chunk_list(1),
    chunk_list(1, 1, 2),
    bytes(36),
    b"x" * 5000,
]


def make(kind: msgspec.inspect.Type, choose: random.Random) -> Any:
    """Any value of a field's type, within its bounds or not; sometimes of another type."""
    if choose.random() < 0.02:
        return choose.choice([None, 0, "", b"", [], {}])
    match kind:
        case msgspec.inspect.StructType():
            made: dict[str, Any] = {"type": kind.cls.__name__} if kind.tag else {}
            for field in kind.fields:
                if field.required or choose.random() < 0.4:
                    made[field.encode_name] = make(field.type, choose)
            return made
        case msgspec.inspect.UnionType():
            return make(choose.choice(kind.types), choose)
        case msgspec.inspect.IntType():
            return choose.choice(NUMBERS) if choose.random() < 0.2 else choose.randrange(2)
        case msgspec.inspect.StrType():
            return choose.choice(TEXTS)
        case msgspec.inspect.BytesType():
            if choose.random() < 0.8 and kind.min_length:
                return bytes(kind.min_length)
            return choose.choice(BYTES)
        case msgspec.inspect.BoolType():
            return choose.random() < 0.5
        case msgspec.inspect.VarTupleType():
            return [make(kind.item_type, choose) for _ in range(choose.randrange(4))]
        case msgspec.inspect.DictType():
            return {
                choose.choice(TEXTS): make(kind.value_type, choose)
                for _ in range(choose.randrange(3))
            }
        case _:
            return None


@pytest.mark.parametrize("seed", range(4))
def test_any_command_gets_an_answer(tmp_path: Path, seed: int) -> None:
    """Excess, wrong types and nonsense are refusals, never exceptions; a replay agrees."""
    choose = random.Random(seed)
    kinds = [
        msgspec.inspect.type_info(command)
        for command in get_args(Command)
        if command is not SetClusterVersion
    ]
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    accepted = set()
    for _ in range(400):
        proposals = []
        for kind in choose.choices(kinds, k=20):
            made = make(kind, choose)
            if choose.random() < 0.7 and isinstance(made, dict) and "actor" in made:
                made["actor"] = ADMIN
            proposals.append((made, replica.propose(msgspec.msgpack.encode(made))))
        results = replica.apply([proposal for _, proposal in proposals])
        for (made, _), result in zip(proposals, results, strict=True):
            if not isinstance(result, Failure):
                accepted.add(made["type"])
    replica.drain()
    assert len(accepted) >= 9, accepted
    assert sqlite3.connect(replica.path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    second = Replica(str(tmp_path / "second.db"))
    for index, entry in enumerate(replica.log, start=1):
        second.machine.apply(index, 1, entry)
    second.close()
    replica.close()
    assert second.tables() == replica.tables()
