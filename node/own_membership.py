"""This node as a member: founding, telling the others about itself, its way in and its way out.

The steps are those of rule M7; what is told to the operator comes from the replicated state, so
that it is true whoever does the steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from gateway.authentication import NewApiKey, new_key
from metadata_raft.commands import (
    CLUSTER_VERSION_SUPPORTED,
    BootstrapCluster,
    Command,
    Failure,
    Result,
    UpdateMember,
)
from metadata_raft.errors import MetadataError, RemovedError, RestoredDiskError
from metadata_raft.records import AppliedState, ClusterRecord, MemberRecord
from node.data_directory import Identity
from node.errors import DepartedError, MembershipError, NodeError
from node.logs import event
from node.settings import Settings
from ring.members import Member

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
"""Between two looks at what has changed; a step of joining takes about as long."""

ANNOUNCE_AGAIN_SECONDS = 5.0
"""Between two announcements while the cluster runs an older version than this node supports."""
LOOK_SECONDS = 1.0
"""Between two looks of a full member at what becomes of it."""

SILENCE_SECONDS = 10.0
"""After this long without a quorum the operator is told what the node is waiting for."""


class MembershipSnapshot(Protocol):
    def cluster(self) -> ClusterRecord: ...

    def members(self) -> Sequence[MemberRecord]: ...


class MembershipMetadata(Protocol):
    """What this needs of `MetadataGroup`."""

    async def submit(self, command: Command, *, timeout_seconds: float = 10.0) -> Result: ...

    async def barrier(self, *, timeout_seconds: float = 1.0) -> int: ...

    def snapshot(self) -> AbstractContextManager[MembershipSnapshot]: ...

    def applied(self) -> AppliedState: ...

    @property
    def is_removed(self) -> bool: ...

    @property
    def later_boot(self) -> int: ...

    @property
    def other_incarnation(self) -> int: ...


def member_of(settings: Settings, identity: Identity) -> Member:
    """This node as the others see it."""
    return Member(
        node_id=identity.node_id,
        peer_address=settings.peer_address,
        raft_address=settings.raft_address,
        client_url=settings.client_url,
        zone=settings.zone,
        weight=settings.weight,
    )


class OwnMembership:
    """Founds the cluster if need be, announces this start, and watches the way into the ring."""

    def __init__(
        self,
        metadata: MembershipMetadata,
        settings: Settings,
        identity: Identity,
        software_version: str,
        say: Callable[[str], None],
    ) -> None:
        self._metadata = metadata
        self._settings = settings
        self._identity = identity
        self._member = member_of(settings, identity)
        self._software_version = software_version
        self._say = say
        self.stage = ""
        """joining, learner, voter, leaving, or empty before the state is known."""
        self.intent = "stay"
        """What its operator wants of it, as last heard: stay, drain, leave or remove."""
        self.in_ring = False

    async def found(self) -> NewApiKey | None:
        """Make the first command of a new cluster; the admin key, None if it was made before."""
        key = new_key()
        result = await self._patiently(
            BootstrapCluster(
                cluster_id=self._identity.cluster_id,
                member=self._member,
                replicas=self._settings.replicas,
                admin_key_id=key.key_id,
                admin_secret_hash=key.secret_hash,
                open_bucket=self._settings.open_bucket or None,
            )
        )
        if not isinstance(result, Failure):
            return key
        if result.code != "already_bootstrapped":
            raise NodeError(f"The cluster can't be founded: {result.detail}")
        return None

    async def announce(self) -> None:
        """Record this start's addresses and boot counter.

        Raises MembershipError where the cluster knows a later start: this disk is an old copy.
        """
        result = await self._patiently(
            UpdateMember(
                member=self._member,
                boot_counter=self._identity.boot_counter,
                software_version=self._software_version,
                supported_version=CLUSTER_VERSION_SUPPORTED,
            )
        )
        if not isinstance(result, Failure):
            return
        if result.code == "no_such_member":
            raise self.departure()
        if result.code != "stale_expectation":
            raise NodeError(f"The cluster refuses what this node says of itself: {result.detail}")
        raise restored_disk(self._identity, result.detail)

    async def announce_until_upgraded(self) -> None:
        """Announce again until the cluster runs the version this node supports.

        A leader whose software was older at the first announcement has not recorded what it said.
        Raises NodeError as `announce` does.
        """
        while self._metadata.applied().cluster_version < CLUSTER_VERSION_SUPPORTED:
            await asyncio.sleep(ANNOUNCE_AGAIN_SECONDS)
            await self.announce()

    async def watch(self) -> None:
        """Tell each step of the way into the ring; returns when the node is in it.

        Returns as well where the node does not belong there: it drains, or is about to leave.
        Raises MembershipError if it is removed meanwhile.
        """
        self.look()
        while not self.in_ring and self.intent == "stay":
            if self._metadata.is_removed:
                raise self.departure()
            if self._metadata.later_boot:
                raise self._restored()
            await asyncio.sleep(PAUSE_SECONDS)
            self.look()

    async def follow(self) -> MembershipError:
        """Tell what becomes of this node; returns its end when it has been removed, or when the
        others know a later start of it."""
        while not self._metadata.is_removed:
            if self._metadata.later_boot:
                return self._restored()
            await asyncio.sleep(LOOK_SECONDS)
            self.look()
        return self.departure()

    def _restored(self) -> MembershipError:
        return restored_disk(
            self._identity,
            f"this is its boot {self._identity.boot_counter}, the others know of boot "
            f"{self._metadata.later_boot}",
        )

    def departure(self) -> MembershipError:
        """The end of this node, which is no member any more: as it was told to, or not."""
        self.look()
        return departed(self._identity) if self.intent == "leave" else removed(self._identity)

    def look(self) -> None:
        """Read this node's own record, and tell what is new.

        Where it can't be read, because clients keep all readers busy or a downloaded state is just
        taking its place, the next look does: this must go on, or nobody hears of a removal.
        """
        try:
            with self._metadata.snapshot() as snapshot:
                records = snapshot.members()
        except MetadataError:
            return
        for record in records:
            if record.member.node_id == self._identity.node_id:
                self._note(record.stage, record.intent, in_ring=record.in_ring)

    def _note(self, stage: str, intent: str, *, in_ring: bool) -> None:
        if stage != self.stage:
            event(logger, logging.INFO, "stage of this node", stage=stage)
            if (self.stage or stage == "joining") and stage in _STEPS:
                self._say(_STEPS[stage])
            self.stage = stage
        if intent != self.intent:
            event(logger, logging.INFO, "intent for this node", intent=intent)
            self._say(_INTENTS[intent])
            self.intent = intent
        if in_ring != self.in_ring:
            event(logger, logging.INFO, f"this node is {'' if in_ring else 'not '}in the ring")
            self.in_ring = in_ring

    async def _patiently(self, command: Command) -> Result:
        """Submit until there is an answer; these commands may be repeated."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        while True:
            try:
                return await self._metadata.submit(command)
            except RemovedError as error:
                raise self.departure() from error
            except RestoredDiskError as error:
                raise self._restored() from error
            except MetadataError as error:
                if loop.time() - told_at > SILENCE_SECONDS:
                    told_at = loop.time()
                    self._tell_of_recovery()
                    event(
                        logger,
                        logging.WARNING,
                        "waiting for a majority of the voters",
                        reason=str(error),
                    )
            await asyncio.sleep(PAUSE_SECONDS)

    def _tell_of_recovery(self) -> None:
        """Why there may never be a majority: the cluster was recovered without this node (M7).

        It goes on waiting: where a restore was a mistake the others of its own incarnation are
        still the cluster, and must not end by it.
        """
        other, own = self._metadata.other_incarnation, self._identity.incarnation
        if other > own:
            self._say(
                f"The metadata of this cluster were restored elsewhere, in incarnation {other}; "
                f"this node is of {own}. To come back with its chunks: stop it, and run `holdfast "
                "meta rejoin` with a token of a node there."
            )
        elif other:
            self._say(
                f"Nodes of this cluster are still of incarnation {other}, this one is of {own}: "
                "they come back with `holdfast meta rejoin`."
            )


_STEPS = {
    "joining": "Joining: admitted, waiting for the leader.",
    "learner": "Joining: learner, catching up with the log.",
    "voter": "Joining: voter, waiting for a place in the ring.",
    "leaving": "Leaving: this node is being removed from the cluster.",
}


_INTENTS = {
    "stay": "Staying: this node is wanted in the ring.",
    "drain": "Draining: the other nodes take over the chunks; this one stays a member.",
    "leave": "Leaving: serving until the other nodes hold all that this one held.",
    "remove": "This node is being removed from its cluster.",
}


def departed(identity: Identity) -> DepartedError:
    """The end of a node that was told to leave, and is not needed any more."""
    return DepartedError(
        f"Node {identity.node_id} has left its cluster: the other nodes hold all that it held, and "
        "its data directory may be deleted."
    )


def restored_disk(identity: Identity, detail: str) -> MembershipError:
    """The end of a node that runs on an older copy of its disk (rule M7)."""
    return MembershipError(
        f"The data directory of node {identity.node_id} was restored from an older copy "
        f"({detail}) and may have forgotten what it promised. Remove the node, and let "
        "it join again with an empty directory.",
        left=False,
    )


def removed(identity: Identity) -> MembershipError:
    """The end of a node that its cluster has removed (rule M7)."""
    return MembershipError(
        f"Node {identity.node_id} was removed from its cluster for good. Its data directory is of "
        "no more use; name an empty one to join again as a new node.",
        left=True,
    )
