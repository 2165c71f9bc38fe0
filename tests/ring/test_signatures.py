"""Signatures of requests: who is let in, and only once."""

from __future__ import annotations

import random

import pytest

from ring.signatures import (
    SESSION_LIMIT,
    WINDOW,
    Credentials,
    RefusedSignatureError,
    RequestVerifier,
    Session,
    sign_request,
)

KEY = bytes(range(32))


def _sign(session: Session, counter: int, *, key: bytes = KEY, receiver: str = "b") -> Credentials:
    return sign_request(
        key,
        sender="a",
        receiver=receiver,
        session=session,
        counter=counter,
        method="PUT",
        target="/x",
        body_digest=b"",
    )


def _refusal(
    verifier: RequestVerifier,
    credentials: Credentials,
    *,
    method: str = "PUT",
    target: str = "/x",
    body_digest: bytes = b"",
) -> str | None:
    """The code of the refusal; None where the request is let in."""
    try:
        verifier.verify(credentials, method=method, target=target, body_digest=body_digest)
    except RefusedSignatureError as error:
        return error.code
    return None


def test_a_signed_request_is_let_in_once() -> None:
    """The second time, the same request is a replay."""
    verifier = RequestVerifier(KEY, "b")
    credentials = Credentials.parse(_sign(verifier.open_session(), 1).text())
    assert _refusal(verifier, credentials) is None
    assert _refusal(verifier, credentials) == "replayed"


def test_everything_a_request_says_is_signed() -> None:
    """A changed method, target, body, counter, sender or receiver breaks the signature, as does
    another cluster's key."""
    verifier = RequestVerifier(KEY, "b")
    session = verifier.open_session()
    good = _sign(session, 1)
    assert _refusal(verifier, good, method="GET") == "bad_signature"
    assert _refusal(verifier, good, target="/y") == "bad_signature"
    assert _refusal(verifier, good, body_digest=b"d") == "bad_signature"
    changed = Credentials("c", session, 1, good.signature)
    assert _refusal(verifier, changed) == "bad_signature"
    assert _refusal(verifier, Credentials("a", session, 2, good.signature)) == "bad_signature"
    assert _refusal(verifier, _sign(session, 1, receiver="c")) == "bad_signature"
    assert _refusal(verifier, _sign(session, 1, key=bytes(32))) == "bad_signature"
    assert _refusal(verifier, good) is None


def test_sessions_end_with_the_boot() -> None:
    """What was signed for one boot of a server is worth nothing to the next one."""
    first, second = RequestVerifier(KEY, "b"), RequestVerifier(KEY, "b")
    session = first.open_session()
    second.open_session()
    assert _refusal(second, _sign(session, 1)) == "unknown_session"


def test_a_forgotten_session_is_not_open_to_replay() -> None:
    """Beyond the bound the least recently used session ends, and its number never returns."""
    verifier = RequestVerifier(KEY, "b")
    old = verifier.open_session()
    seen = _sign(old, 1)
    assert _refusal(verifier, seen) is None
    used = verifier.open_session()
    for _ in range(SESSION_LIMIT - 1):
        assert _refusal(verifier, _sign(used, _ + 1)) is None
        verifier.open_session()
    assert _refusal(verifier, seen) == "unknown_session"
    assert _refusal(verifier, _sign(used, SESSION_LIMIT)) is None


def test_requests_may_overtake_one_another_within_the_window() -> None:
    """Counters come in any order, each is taken once, and what is too old to tell is refused."""
    verifier = RequestVerifier(KEY, "b")
    session = verifier.open_session()
    counters = list(range(1, 300))
    random.Random(1).shuffle(counters)
    assert all(_refusal(verifier, _sign(session, counter)) is None for counter in counters)
    assert all(_refusal(verifier, _sign(session, counter)) == "replayed" for counter in counters)
    assert _refusal(verifier, _sign(session, 0)) == "replayed"
    assert _refusal(verifier, _sign(session, WINDOW + 300)) is None
    assert _refusal(verifier, _sign(session, 300)) == "replayed"
    assert _refusal(verifier, _sign(session, 301)) is None
    assert _refusal(verifier, _sign(session, 10**17)) is None
    assert _refusal(verifier, _sign(session, 302)) == "replayed"


@pytest.mark.parametrize("text", ["", "a b c", "a zz 1 1 00", "a 00 x 1 00", "a 00 1 1 0"])
def test_malformed_credentials_are_refused(text: str) -> None:
    """What does not have the form of credentials is refused like a wrong signature."""
    with pytest.raises(RefusedSignatureError) as caught:
        Credentials.parse(text)
    assert caught.value.code == "bad_signature"
