"""The operations on the cluster itself: members, ring, settings, tokens. See `operations.py`."""

from __future__ import annotations

from gateway import documents as d
from gateway import paths
from gateway.operation import BINARY, DOCUMENT, KEYED, WRITE, Operation, Parameter

_NODE = Parameter(
    "node_id",
    "path",
    {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
    "The node's id.",
)
_BOOLEAN = {"type": "string", "enum": ["true", "false"]}
_REDUCE_COPIES = Parameter(
    "reduce_copies",
    "query",
    _BOOLEAN,
    "`true` allows it although fewer nodes would be left than copies are wanted.",
)
_MEMBER = (
    *WRITE,
    "invalid_path",
    "no_such_member",
    "stale_expectation",
    "cluster_version_too_old",
)

CLUSTER_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        paths.CLUSTER,
        "getCluster",
        "The members, the Raft group and the load, as the answering node sees them.",
        {200: d.ClusterDocument},
        KEYED,
    ),
    Operation(
        "GET",
        paths.RING,
        "getRing",
        "The ring's current epoch and what each member owns of it; what a change would move.",
        {200: d.RingDocument},
        (*KEYED, "no_such_member", "too_few_nodes"),
        (
            Parameter(
                "preview",
                "query",
                {"type": "string", "enum": ["join", "leave"]},
                "Also says what would move if a node joined or left.",
            ),
            Parameter(
                "capacity",
                "query",
                {"type": "integer", "minimum": 1, "maximum": 1_000_000},
                "Of the node that would join, in gigabytes: its weight.",
            ),
            Parameter(
                "zone",
                "query",
                {"type": "string", "maxLength": 64},
                "Of the node that would join.",
            ),
            Parameter("node", "query", {"type": "string"}, "The id of the node that would leave."),
        ),
    ),
    Operation(
        "DELETE",
        paths.MEMBER,
        "removeMember",
        "Remove a dead node for good: the others make its copies anew.",
        {204: None},
        (*_MEMBER, "node_is_alive", "too_few_nodes"),
        (_NODE, Parameter("force", "query", _BOOLEAN, "`true` removes one that answers as well.")),
    ),
    Operation(
        "POST",
        paths.MEMBER_DRAIN,
        "drainMember",
        "Move a node's chunks to the others; it stays a member, and may be put back to use.",
        {200: d.MemberDocument},
        (*_MEMBER, "too_few_nodes"),
        (_NODE, _REDUCE_COPIES),
    ),
    Operation(
        "POST",
        paths.MEMBER_UNDRAIN,
        "undrainMember",
        "Put a node back to use that drains, or that is about to leave.",
        {200: d.MemberDocument},
        _MEMBER,
        (_NODE,),
    ),
    Operation(
        "POST",
        paths.MEMBER_LEAVE,
        "leaveMember",
        "Move a node's chunks to the others, then take it out of the cluster for good.",
        {200: d.MemberDocument},
        (*_MEMBER, "too_few_nodes"),
        (_NODE, _REDUCE_COPIES),
    ),
    Operation(
        "PATCH",
        paths.CLUSTER_SETTINGS,
        "changeSettings",
        "Change the settings of the whole cluster that the body names.",
        {200: d.SettingsDocument},
        (*DOCUMENT, "cluster_version_too_old"),
        body=d.SettingsChange,
    ),
    Operation(
        "POST",
        paths.COLLECTION_RESUME,
        "resumeCollection",
        "Let space be reclaimed again, after a restore from a backup has held it.",
        {204: None},
        (*WRITE, "cluster_version_too_old"),
    ),
    Operation(
        "POST",
        paths.SCRUB,
        "scrub",
        "Let nodes reread all their chunks and quarantine what is damaged.",
        {202: d.ScrubDocument},
        (*WRITE, "no_such_member"),
        (Parameter("node", "query", {"type": "string"}, "The id of one node; all without it."),),
    ),
    Operation(
        "POST",
        paths.TOKENS,
        "createToken",
        "Make a token with which one node may join.",
        {201: d.NewToken},
        DOCUMENT,
        body=d.TokenCreation,
        body_required=False,
    ),
    Operation(
        "POST",
        paths.JOIN,
        "join",
        "For nodes: a request to join, sealed with a token.",
        {200: BINARY},
        (*WRITE, "token_invalid", "address_taken", "member_removed", "body_too_large"),
        body=BINARY,
        is_open=True,
    ),
)
