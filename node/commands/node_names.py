"""Which node an argument means: its id, a prefix of it that no other has, or its client URL.

A prefix of a URL is not enough: `http://10.0.0.1` must not mean 10.0.0.10 once the former is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from gateway.documents import MemberDocument
from node.errors import EXIT_NOT_FOUND, EXIT_USAGE, NodeError


class NoSuchNodeError(NodeError):
    exit_code = EXIT_NOT_FOUND


class AmbiguousNodeError(NodeError):
    exit_code = EXIT_USAGE


def find_member(members: Sequence[MemberDocument], text: str) -> MemberDocument:
    """The member that `text` names. Raises NoSuchNodeError or AmbiguousNodeError."""
    wanted = text.strip().rstrip("/").lower()
    exact = [each for each in members if wanted in _whole_names(each)]
    found = exact or [each for each in members if wanted and each.node_id.startswith(wanted)]
    if not found:
        raise NoSuchNodeError(
            f"No node of the cluster is {text!r}; `holdfast nodes` lists their ids and URLs."
        )
    if len(found) > 1:
        names = ", ".join(f"{each.node_id} ({each.client_url})" for each in found)
        raise AmbiguousNodeError(f"{text!r} could be any of {names}: give more of the id.")
    return found[0]


def _whole_names(member: MemberDocument) -> tuple[str, ...]:
    url = member.client_url.rstrip("/").lower()
    return member.node_id, url, urlsplit(url).netloc
