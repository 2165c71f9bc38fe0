"""Signed requests between peers, where TLS is off. Pure: no clock, no socket.

A request carries a keyed BLAKE3 over what it asks for, made with a key that only nodes of the
cluster have. Against replay there is no time in it but a place in a session: a server hands out
session numbers that it never uses again, names its boot by a random nonce, and takes each counter
of a session once. Requests may overtake one another, so a window of counters is remembered.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from blake3 import blake3

from ring.members import NodeId

BOOT_NONCE_SIZE = 16
SIGNATURE_SIZE = 32

WINDOW = 4096
"""Counters of a session that are told apart: more than the requests a peer has under way at once.
An older one is refused, as if it had been seen."""

SESSION_LIMIT = 1024
"""Sessions a server remembers; the least recently used one ends, and its client opens another."""


class RefusedSignatureError(Exception):
    """Why a request is not let in; the code goes to the peer."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Session:
    """A client's place at one boot of one server."""

    boot_nonce: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a signed request carries besides the request itself."""

    sender: NodeId
    session: Session
    counter: int
    signature: bytes

    def text(self) -> str:
        return (
            f"{self.sender} {self.session.boot_nonce.hex()} {self.session.number} "
            f"{self.counter} {self.signature.hex()}"
        )

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """Raises RefusedSignatureError for what has another form."""
        try:
            sender, nonce, number, counter, signature = text.split(" ")
            session = Session(bytes.fromhex(nonce), int(number))
            return cls(sender, session, int(counter), bytes.fromhex(signature))
        except ValueError:
            raise RefusedSignatureError("bad_signature", "the credentials are malformed") from None


def sign_request(
    key: bytes,
    *,
    sender: NodeId,
    receiver: NodeId,
    session: Session,
    counter: int,
    method: str,
    target: str,
    body_digest: bytes,
) -> Credentials:
    """Sign a request. `target` is path and query as sent; `body_digest` is empty where the target
    names the contents of the body."""
    text = (
        f"holdfast request 1\n{sender}\n{receiver}\n{session.boot_nonce.hex()}\n{session.number}\n"
        f"{counter}\n{method}\n{target}\n{body_digest.hex()}"
    )
    return Credentials(sender, session, counter, blake3(text.encode(), key=key).digest())


def sign_welcome(key: bytes, *, receiver: NodeId, challenge: bytes, session: Session) -> bytes:
    """A server's proof, to the client that sent the random `challenge`, that it has the key."""
    text = (
        f"holdfast welcome 1\n{receiver}\n{challenge.hex()}\n{session.boot_nonce.hex()}\n"
        f"{session.number}"
    )
    return blake3(text.encode(), key=key).digest()


def equal(left: bytes, right: bytes) -> bool:
    """Compare without telling by the time taken where they differ."""
    return hmac.compare_digest(left, right)


class RequestVerifier:
    """A server's memory of its sessions; lives as long as the process."""

    def __init__(self, key: bytes, node_id: NodeId) -> None:
        self._key = key
        self._node_id = node_id
        self.boot_nonce = secrets.token_bytes(BOOT_NONCE_SIZE)
        self._windows: OrderedDict[int, _Window] = OrderedDict()
        self._next_number = 1

    def open_session(self) -> Session:
        """A session with a number that was never used since this boot."""
        number = self._next_number
        self._next_number += 1
        self._windows[number] = _Window()
        if len(self._windows) > SESSION_LIMIT:
            self._windows.popitem(last=False)
        return Session(self.boot_nonce, number)

    def verify(
        self, credentials: Credentials, *, method: str, target: str, body_digest: bytes
    ) -> None:
        """Let a request in, once. Raises RefusedSignatureError."""
        expected = sign_request(
            self._key,
            sender=credentials.sender,
            receiver=self._node_id,
            session=credentials.session,
            counter=credentials.counter,
            method=method,
            target=target,
            body_digest=body_digest,
        )
        if not equal(expected.signature, credentials.signature):
            raise RefusedSignatureError(
                "bad_signature", "the request is not signed with this cluster's secret"
            )
        number = credentials.session.number
        window = self._windows.get(number)
        if credentials.session.boot_nonce != self.boot_nonce or window is None:
            raise RefusedSignatureError("unknown_session", "the session has ended; open another")
        if not window.take(credentials.counter):
            raise RefusedSignatureError("replayed", "the request was received before")
        self._windows.move_to_end(number)


class _Window:
    """Which of the newest counters were taken: a bit each, the lowest one for `_highest`."""

    __slots__ = ("_highest", "_taken")

    def __init__(self) -> None:
        self._highest = 0
        self._taken = 1

    def take(self, counter: int) -> bool:
        ahead = counter - self._highest
        if ahead > 0:
            # A jump past the whole window leaves nothing of it; the number must not grow by it.
            self._taken = (self._taken << ahead & _WINDOW_BITS | 1) if ahead < WINDOW else 1
            self._highest = counter
            return True
        if -ahead >= WINDOW or self._taken >> -ahead & 1:
            return False
        self._taken |= 1 << -ahead
        return True


_WINDOW_BITS = (1 << WINDOW) - 1
