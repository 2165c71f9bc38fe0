"""What a start is: founding a cluster, asking to join one, or going on as the node it was.

The identity in the data directory decides, with what the operator asked for; the same command
serves for every start of a node's life.
"""

from __future__ import annotations

import uuid
from typing import Literal, NamedTuple

from node.data_directory import Identity
from node.errors import DataDirectoryError, JoinError
from node.join import JoinToken
from ring.identity import new_cluster_secret


class Start(NamedTuple):
    """What this start is: who the node will be, and whether it has to ask for admission first."""

    identity: Identity
    kind: Literal["found", "join", "continue"]


def plan_start(
    identity: Identity | None, *, join: bool, token: JoinToken | None, path: str
) -> Start:
    """Decide from the directory's identity and what the operator asked for. Pure but for new ids.

    Raises JoinError or DataDirectoryError where the two contradict each other.
    """
    if token is not None and identity is not None and identity.cluster_id != token.cluster_id:
        raise DataDirectoryError(
            f"The data directory {path} belongs to cluster {identity.cluster_id}, the token to "
            f"cluster {token.cluster_id}. Name an empty directory to join that one."
        )
    if identity is None and not join:
        return Start(
            Identity(
                cluster_id=str(uuid.uuid4()),
                node_id=str(uuid.uuid4()),
                stage="founding",
                cluster_secret=new_cluster_secret().hex(),
            ),
            "found",
        )
    if identity is not None and identity.cluster_secret:
        if join and identity.stage == "founding":
            raise DataDirectoryError(
                f"The data directory {path} founds a cluster of its own and can't join another; "
                "name an empty one."
            )
        return Start(identity, "continue")
    if not join:
        raise JoinError(
            f"The data directory {path} has not been admitted to its cluster yet: start with "
            "--join and the token once more."
        )
    if token is None:
        raise JoinError(
            "To join, put the token into a file and name it in HOLDFAST_JOIN_TOKEN_FILE "
            "(`holdfast token` on a node of the cluster makes one)."
        )
    if identity is not None:
        return Start(identity, "join")
    return Start(
        Identity(cluster_id=token.cluster_id, node_id=str(uuid.uuid4()), stage="joining"), "join"
    )
