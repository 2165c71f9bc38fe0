"""How a node is admitted: one sealed question, one sealed answer, over any HTTP.

A join token holds the cluster's id, where to ask, and a secret of 256 random bits whose hash is in
the replicated state until it is spent or expires. Both sides derive a key from that hash; question
and answer are encrypted and authenticated with it, so the exchange needs no trusted network, and
the cluster secret is readable by nobody but the bearer of the token. The same node may repeat the
question, which is how a crash in the middle is survived. The bytes are described in docs/format.md.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import secrets
import ssl
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec
from blake3 import blake3

from gateway.client import ClientError, GatewayClient, RefusedError, UnreachableError
from gateway.documents import NewToken
from gateway.errors import ApiError, from_failure
from metadata_raft.commands import AdmitMember, Command, CreateJoinToken, Failure, Result
from metadata_raft.records import MemberRecord
from node.data_directory import Identity
from node.errors import JoinError
from ring.identity import SealedError, seal, unseal
from ring.members import Member

TOKEN_PREFIX = "hfj_"
TOKEN_VERSION = 1
EXCHANGE_VERSION = 1
SECRET_BYTES = 32

_ASK_ROUNDS = 30
_ASK_PAUSE_SECONDS = 1.0
"""Half a minute of asking all the addresses: an election, or a node that is just restarting."""

_NEW_TOKEN = (
    " A token admits one node, once: `holdfast token` on a node makes another. If this directory "
    "was wiped, or its disk replaced, first remove the node that it held: `holdfast nodes` shows "
    "it, `holdfast remove NODE` removes it."
)

_KEY_CONTEXT = "holdfast 2026 join exchange"
_QUESTION, _ANSWER = b"holdfast join question", b"holdfast join answer"


class JoinToken(msgspec.Struct, frozen=True, array_like=True):
    """What `holdfast token` prints, as text `hfj_…`."""

    version: int
    cluster_id: str
    token_id: str
    secret: bytes
    urls: tuple[str, ...]
    """Client URLs of members at the time it was made."""
    incarnation: int = 1
    """Of the cluster; a node of an earlier one may come back with it (node/recovery.py)."""

    def __repr__(self) -> str:
        return f"JoinToken({self.token_id}, cluster {self.cluster_id})"

    def text(self) -> str:
        encoded = base64.urlsafe_b64encode(msgspec.msgpack.encode(self))
        return TOKEN_PREFIX + encoded.decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises JoinError for what is no token."""
        body = text.strip().removeprefix(TOKEN_PREFIX)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            token = msgspec.msgpack.decode(data, type=cls)
        except (binascii.Error, ValueError, msgspec.DecodeError) as error:
            raise JoinError(
                "What was given as join token is not one; it starts with "
                f"{TOKEN_PREFIX} and is copied whole."
            ) from error
        if token.version != TOKEN_VERSION:
            raise JoinError(f"The join token has version {token.version}; use the same Holdfast.")
        return token

    def secret_hash(self) -> bytes:
        return blake3(self.secret).digest()


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What a node asks, sealed; `token_id` stands before it in the clear."""

    version: int
    member: Member


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What it is told, sealed."""

    version: int
    cluster_id: str
    incarnation: int
    cluster_secret: bytes
    seeds: tuple[tuple[str, str], ...]
    """(node id, Raft address) of the members."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    token_id: str
    sealed: bytes


class JoinSnapshot(Protocol):
    def join_token_hash(self, token_id: str) -> bytes | None: ...

    def members(self) -> Sequence[MemberRecord]: ...


class JoinMetadata(Protocol):
    """What admitting needs of `MetadataGroup`."""

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result: ...

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int: ...

    def snapshot(self) -> AbstractContextManager[JoinSnapshot]: ...


class Admission:
    """The cluster's side: makes tokens and answers those who bear them."""

    def __init__(self, metadata: JoinMetadata, identity: Identity) -> None:
        self._metadata = metadata
        self._identity = identity

    async def create_token(self, *, actor: str, lifetime_seconds: int) -> NewToken:
        """A token for one node. Raises ApiError."""
        await self._metadata.barrier()
        with self._metadata.snapshot() as snapshot:
            urls = tuple(record.member.client_url for record in snapshot.members())
        token = JoinToken(
            version=TOKEN_VERSION,
            cluster_id=self._identity.cluster_id,
            token_id=secrets.token_hex(8),
            secret=secrets.token_bytes(SECRET_BYTES),
            urls=urls,
            incarnation=self._identity.incarnation,
        )
        _raise_failure(
            await self._metadata.submit(
                CreateJoinToken(
                    token_id=token.token_id,
                    secret_hash=token.secret_hash(),
                    actor=actor,
                    lifetime_ms=lifetime_seconds * 1000,
                )
            )
        )
        return NewToken(token=token.text(), lifetime_seconds=lifetime_seconds)

    async def answer(self, envelope: bytes) -> bytes:
        """Admit the bearer of a token. Raises ApiError (token_invalid, invalid_request, …)."""
        try:
            asked = msgspec.msgpack.decode(envelope, type=_Envelope)
        except msgspec.DecodeError as error:
            raise ApiError("invalid_request", "the body is no question to join") from error
        await self._metadata.barrier()
        with self._metadata.snapshot() as snapshot:
            secret_hash = snapshot.join_token_hash(asked.token_id)
        if secret_hash is None:
            raise ApiError("token_invalid", "the join token is not one of this cluster")
        key = _key(secret_hash)
        try:
            question = msgspec.msgpack.decode(unseal(key, asked.sealed, _QUESTION), type=Question)
        except (SealedError, msgspec.DecodeError) as error:
            raise ApiError("token_invalid", "the question was not sealed with the token") from error
        if question.version != EXCHANGE_VERSION:
            raise ApiError("invalid_request", "the joining node speaks another version")
        self._check_addresses(question.member)
        admitted = await self._metadata.submit(
            AdmitMember(token_id=asked.token_id, secret_hash=secret_hash, member=question.member)
        )
        _raise_failure(admitted)
        with self._metadata.snapshot() as snapshot:
            members = snapshot.members()
        answer = Answer(
            version=EXCHANGE_VERSION,
            cluster_id=self._identity.cluster_id,
            incarnation=self._identity.incarnation,
            cluster_secret=bytes.fromhex(self._identity.cluster_secret),
            seeds=tuple(
                (record.member.node_id, record.member.raft_address)
                for record in members
                if record.stage != "joining"
            ),
        )
        return seal(key, msgspec.msgpack.encode(answer), _answer_label(envelope))

    def _check_addresses(self, joining: Member) -> None:
        """Refuse who comes with a member's addresses: that one's disk was wiped or replaced.

        The others would take the new node for the old one, whose copies are gone.
        """
        with self._metadata.snapshot() as snapshot:
            members = [record.member for record in snapshot.members()]
        for member in members:
            if member.node_id == joining.node_id:
                continue
            if {member.peer_address, member.raft_address} & {
                joining.peer_address,
                joining.raft_address,
            }:
                raise ApiError(
                    "address_taken",
                    f"its addresses are those of node {member.node_id}; if the disk of that node "
                    f"was wiped or replaced, remove it first (`holdfast remove {member.node_id}` "
                    "on another node), then join again",
                )


async def ask_to_join(token: JoinToken, identity: Identity, member: Member) -> Identity:
    """The node's side: the identity with the cluster's secret and seeds. Raises JoinError."""
    key = _key(token.secret_hash())
    question = msgspec.msgpack.encode(Question(version=EXCHANGE_VERSION, member=member))
    envelope = msgspec.msgpack.encode(
        _Envelope(token_id=token.token_id, sealed=seal(key, question, _QUESTION))
    )
    sealed = await _ask(token.urls, envelope)
    try:
        opened = unseal(key, sealed, _answer_label(envelope))
        answer = msgspec.msgpack.decode(opened, type=Answer)
    except (SealedError, msgspec.DecodeError) as error:
        raise JoinError(
            "The answer to the request to join is not from the cluster that made the token."
        ) from error
    if answer.cluster_id != token.cluster_id:
        raise JoinError(
            f"The nodes named in the token belong to cluster {answer.cluster_id}, the token to "
            f"cluster {token.cluster_id}."
        )
    return msgspec.structs.replace(
        identity,
        incarnation=answer.incarnation,
        cluster_secret=answer.cluster_secret.hex(),
        seeds=answer.seeds,
    )


async def _ask(urls: Sequence[str], envelope: bytes) -> bytes:
    """The first answer; a refusal for good is final unless another node answers, anything else is
    tried again for a while."""
    # The seal proves more than a certificate would, and a private one need not be known yet.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    last: ClientError | None = None
    for attempt in range(_ASK_ROUNDS):
        if attempt > 0:
            await asyncio.sleep(_ASK_PAUSE_SECONDS)
        refused: RefusedError | None = None
        for url in urls:
            async with contextlib.AsyncExitStack() as stack:
                client = await stack.enter_async_context(GatewayClient(url, tls=unverified))
                try:
                    return await client.join(envelope)
                except RefusedError as error:
                    # Another one may know better: this may be a node that a restore left behind.
                    refused = refused if error.retryable else error
                    last = error
                except UnreachableError as error:
                    last = error
        if refused is not None:
            hint = _NEW_TOKEN if refused.code == "token_invalid" else ""
            raise JoinError(
                f"The cluster does not admit this node: {refused.detail.rstrip('.')}." + hint
            ) from refused
    raise JoinError(
        f"No node of the cluster answers at {', '.join(urls)}: {last}. Try again; the token stays "
        "good until it expires."
    )


def _key(secret_hash: bytes) -> bytes:
    return blake3(secret_hash, derive_key_context=_KEY_CONTEXT).digest()


def _answer_label(envelope: bytes) -> bytes:
    """Binds an answer to its question, so that one to another node can't be put in its place."""
    return _ANSWER + blake3(envelope).digest()


def _raise_failure(result: Result) -> None:
    if isinstance(result, Failure):
        raise from_failure(result)
