"""Exactly once (rule M1): which requests have been answered, and with what.

Every proposal's result is remembered under its request id until its `not_after_ms` has passed in
state time; a copy that comes later is refused as expired, so none takes effect twice. A client's
`Idempotency-Key` is remembered for 24 hours with the result of the request that succeeded under it;
a refused request changed nothing and may be tried again under the same key.

Forgetting is bounded per entry and follows state time alone. Where the memory for client keys is
full, new keyed requests are refused with a retryable failure: nothing is forgotten early.
"""

from __future__ import annotations

from metadata_raft.commands import Failure, IdempotencyKey
from metadata_raft.working_state import WorkingState

IDEMPOTENCY_LIFETIME_MS = 24 * 3_600_000
IDEMPOTENCY_LIMIT = 1_000_000
"""Remembered client keys at most; about 400 MB of disk."""

IDEMPOTENCY_TEXT_LIMIT = 1024
"""Characters of a scope or key; bytes of a fingerprint."""

FORGOTTEN_PER_ENTRY = 16
FORGOTTEN_PER_PROPOSAL = 2
"""Twice what comes in, so that the tables shrink after a burst; few enough to bound an entry."""


class RequestResults:
    """The two tables of remembered results; `StateMachine` asks them around every command."""

    def __init__(self, state: WorkingState) -> None:
        self._state = state
        self._pending: dict[bytes, tuple[bytes, int, bytes]] = {}

    def find(self, request_id: bytes, not_after_ms: int) -> bytes | None:
        """The encoded result remembered for a request id.

        It is kept for as long as the copy that asks may be repeated, if that is longer.
        """
        found = self._pending.get(request_id)
        if found is None:
            found = self._state.execute(
                "SELECT request_id, not_after_ms, result FROM request_results WHERE request_id = ?",
                (request_id,),
            ).fetchone()
            if found is None:
                return None
            if not_after_ms > found[1]:
                self._state.execute(
                    "UPDATE request_results SET not_after_ms = ? WHERE request_id = ?",
                    (not_after_ms, request_id),
                )
        elif not_after_ms > found[1]:
            self._pending[request_id] = (request_id, not_after_ms, found[2])
        return found[2]

    def remember(self, request_id: bytes, not_after_ms: int, result: bytes) -> None:
        """Keep a result; it reaches the table with `end_entry`."""
        self._pending[request_id] = (request_id, not_after_ms, result)

    def find_keyed(self, idempotency: IdempotencyKey) -> bytes | Failure | None:
        """What is remembered under a client's key, a refusal of the key, or None if it is new."""
        scope, key, fingerprint = idempotency.scope, idempotency.key, idempotency.fingerprint
        if max(len(scope), len(key), len(fingerprint)) > IDEMPOTENCY_TEXT_LIMIT:
            return Failure(code="invalid_command", detail="The idempotency key is too long.")
        row = self._state.execute(
            "SELECT fingerprint, result FROM idempotency_results WHERE scope = ? AND key = ?",
            (scope, key),
        ).fetchone()
        if row is not None:
            if row[0] != fingerprint:
                return Failure(
                    code="idempotency_key_reused",
                    detail=f"The idempotency key '{key}' was used for another request.",
                )
            return bytes(row[1])
        if self._state.cluster.idempotency_count >= IDEMPOTENCY_LIMIT:
            return Failure(
                code="idempotency_keys_full",
                detail=f"{IDEMPOTENCY_LIMIT:,} idempotency keys are remembered already.",
                retryable=True,
            )
        return None

    def remember_keyed(self, idempotency: IdempotencyKey, result: bytes) -> None:
        cluster = self._state.cluster
        self._state.execute(
            "INSERT INTO idempotency_results VALUES (?, ?, ?, ?, ?)",
            (
                idempotency.scope,
                idempotency.key,
                idempotency.fingerprint,
                result,
                cluster.time_ms,
            ),
        )
        cluster.idempotency_count += 1

    def end_entry(self, proposal_count: int) -> None:
        """Write what the entry brought and forget what has expired, both within bounds.

        Done per entry, not per commit: replicas commit in different batches and must agree.
        """
        state, time_ms = self._state, self._state.cluster.time_ms
        if self._pending:
            state.executemany(
                "INSERT INTO request_results VALUES (?, ?, ?)", self._pending.values()
            )
            self._pending.clear()
        limit = FORGOTTEN_PER_ENTRY + FORGOTTEN_PER_PROPOSAL * proposal_count
        state.execute(
            "DELETE FROM request_results WHERE request_id IN (SELECT request_id"
            " FROM request_results WHERE not_after_ms < ?"
            " ORDER BY not_after_ms, request_id LIMIT ?)",
            (time_ms, limit),
        )
        if state.cluster.idempotency_count:
            forgotten = state.execute(
                "DELETE FROM idempotency_results WHERE (scope, key) IN (SELECT scope, key"
                " FROM idempotency_results WHERE created_ms < ?"
                " ORDER BY created_ms, scope, key LIMIT ?)",
                (time_ms - IDEMPOTENCY_LIFETIME_MS, limit),
            ).rowcount
            state.cluster.idempotency_count -= forgotten
