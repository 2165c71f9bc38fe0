"""The development cluster's directory: its own, remembered, and never somebody else's."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from node.data_directory import IDENTITY_NAME, Identity
from node.development import DevelopmentCluster
from node.errors import DataDirectoryError, PortTakenError
from node.ports import free_ports


def ports_of(cluster: DevelopmentCluster) -> list[int]:
    return [
        port
        for node in cluster.nodes
        for port in (node.ports.client, node.ports.peer, node.ports.raft)
    ]


def test_ports_are_distinct_and_remembered(tmp_path: Path) -> None:
    """A kept cluster is found where it was; growing it leaves the first nodes where they are."""
    first = ports_of(DevelopmentCluster(str(tmp_path), 3, print))
    assert len(set(first)) == 9
    assert ports_of(DevelopmentCluster(str(tmp_path), 3, print)) == first
    assert ports_of(DevelopmentCluster(str(tmp_path), 5, print))[:9] == first


def test_a_remembered_port_that_is_taken_is_said(tmp_path: Path) -> None:
    """Members are known by their addresses; moving silently would leave them unreachable."""
    port = ports_of(DevelopmentCluster(str(tmp_path), 1, print))[1]
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(PortTakenError, match=f"Port {port} .* is taken"),
    ):
        DevelopmentCluster(str(tmp_path), 1, print)


def test_taken_default_ports_are_avoided(tmp_path: Path) -> None:
    """A node that runs on 7070 already doesn't keep anybody from a first try."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 7071))
            taken.listen()
        except OSError:
            pass  # Somebody else holds it, which is as good.
        assert 7070 not in ports_of(DevelopmentCluster(str(tmp_path), 1, print))


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    """Nothing is put among somebody's files."""
    (tmp_path / "thesis").write_text("")
    with pytest.raises(DataDirectoryError, match="was not made by `holdfast dev`"):
        DevelopmentCluster(str(tmp_path), 1, print)


def test_a_node_that_has_left_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory would be refused each time; that it has left is said, once."""
    said: list[str] = []
    cluster = DevelopmentCluster(str(tmp_path), 1, said.append)
    (node,) = cluster.nodes
    monkeypatch.setattr(node, "exit_code", lambda: 0)
    left = Identity(cluster_id="c", node_id="n", incarnation=1, boot_counter=3, stage="left")
    Path(node.data).mkdir()
    Path(node.data, IDENTITY_NAME).write_bytes(msgspec.json.encode(left))
    cluster._revive(node)
    cluster._revive(node)
    assert said == ["Node 1 has left the cluster, and is not started again."]


def test_free_ports_can_be_listened_on() -> None:
    """Distinct, and free at the time of asking."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
