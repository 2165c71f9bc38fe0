"""The cluster secret, what follows from it, and sealed envelopes."""

from __future__ import annotations

import pytest

from ring.identity import ClusterIdentity, SealedError, new_cluster_secret, seal, unseal

SECRET = bytes(range(32))


def _identity(
    *, secret: bytes = SECRET, cluster_id: str = "c", node_id: str = "n"
) -> ClusterIdentity:
    return ClusterIdentity(cluster_id=cluster_id, node_id=node_id, secret=secret)


def test_keys_are_the_same_on_every_node_and_for_ever() -> None:
    """Derived keys are a fixed function of secret and cluster: nodes of all versions must agree."""
    assert _identity().request_key() == _identity(node_id="other").request_key()
    assert _identity().raft_key().hex() == (
        "d2eb6ca24592dc1e12dd729874c54d1ab8a77dbe6deb2b4ab66c67c5cd34487e"
    )


def test_keys_differ_by_purpose_secret_and_cluster() -> None:
    """No key can stand in for another."""
    identities = [_identity(), _identity(secret=new_cluster_secret()), _identity(cluster_id="d")]
    keys = {
        key
        for identity in identities
        for key in (identity.request_key(), identity.raft_key(), identity.authority_seed())
    }
    assert len(keys) == 9
    assert SECRET not in keys


def test_a_secret_has_32_bytes_and_is_never_printed() -> None:
    """A short secret is refused, and `repr` of an identity shows none."""
    with pytest.raises(ValueError, match="32 bytes"):
        _identity(secret=b"short")
    assert repr(SECRET)[2:-1] not in repr(_identity())
    assert "secret" not in repr(_identity())


def test_sealed_bytes_open_only_with_key_and_purpose() -> None:
    """What was sealed comes back; another key, purpose, or any changed byte is refused."""
    key = bytes(32)
    sealed = seal(key, b"the secret", b"purpose")
    assert b"the secret" not in sealed
    assert unseal(key, sealed, b"purpose") == b"the secret"
    with pytest.raises(SealedError):
        unseal(bytes([1]) + bytes(31), sealed, b"purpose")
    with pytest.raises(SealedError):
        unseal(key, sealed, b"another purpose")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SealedError):
            unseal(key, bytes(changed), b"purpose")
    for length in range(len(sealed)):
        with pytest.raises(SealedError):
            unseal(key, sealed[:length], b"purpose")
