"""Commands on API keys. A key is known by the hash of its secret, which is never in the log."""

from __future__ import annotations

from metadata_raft import access
from metadata_raft.commands import (
    ANONYMOUS,
    KEY_LIMIT,
    SYSTEM,
    CreateKey,
    Done,
    Failure,
    Result,
    RevokeKey,
)
from metadata_raft.working_state import WorkingState


def create_key(state: WorkingState, command: CreateKey) -> Result:
    """Store a key; with `replaces_role` every other key of that role goes in the same step."""
    if command.role not in access.ROLES or command.key_id in {SYSTEM, ANONYMOUS}:
        return Failure(
            code="invalid_command",
            detail=f"A key '{command.key_id}' with the role '{command.role[:80]}' can't be.",
        )
    if not access.may_administer(state.role(command.actor)):
        return _forbidden()
    existing = state.execute(
        "SELECT secret_hash, role FROM keys WHERE key_id = ?", (command.key_id,)
    ).fetchone()
    if existing is not None:
        if existing == (command.secret_hash, command.role):
            return Done()
        return Failure(
            code="invalid_command", detail=f"The key id '{command.key_id}' is taken already."
        )
    replaced = [key for key, role in state.roles.items() if role == command.replaces_role]
    if len(state.roles) - len(replaced) >= KEY_LIMIT:
        return Failure(code="too_many_keys", detail=f"There are {KEY_LIMIT:,} keys already.")
    for key_id in replaced:
        _remove(state, key_id)
    add_key(
        state,
        key_id=command.key_id,
        secret_hash=command.secret_hash,
        role=command.role,
        description=command.description,
    )
    return Done()


def add_key(
    state: WorkingState, *, key_id: str, secret_hash: bytes, role: str, description: str
) -> None:
    """Insert a key that has been checked."""
    state.execute(
        "INSERT INTO keys VALUES (?, ?, ?, ?, NULL, ?)",
        (key_id, secret_hash, role, description, state.cluster.time_ms),
    )
    state.roles[key_id] = role


def revoke_key(state: WorkingState, command: RevokeKey) -> Result:
    """Remove a key; from the next command on it may nothing."""
    if not access.may_administer(state.role(command.actor)):
        return _forbidden()
    if command.key_id not in state.roles:
        return Failure(code="no_such_key", detail=f"There is no key '{command.key_id}'.")
    _remove(state, command.key_id)
    return Done()


def _remove(state: WorkingState, key_id: str) -> None:
    state.execute("DELETE FROM keys WHERE key_id = ?", (key_id,))
    del state.roles[key_id]


def _forbidden() -> Failure:
    return Failure(code="forbidden", detail="Only an admin key may change keys.")
