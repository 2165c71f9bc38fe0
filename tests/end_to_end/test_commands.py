"""The command line against a real node: what people and scripts rely on."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from blake3 import blake3

from tests.end_to_end.cluster import OPEN_BUCKET, Cluster, running_cluster

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path_factory.mktemp("commands"), 1) as running:
        yield running


async def test_a_file_comes_back_as_it_went(cluster: Cluster, tmp_path: Path) -> None:
    """put, get, cat, ls and rm on one file of several chunks; quiet where nobody watches."""
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(20 * MIB + 1))
    put = await cluster.command("put", str(sent), f"{OPEN_BUCKET}/one/file")
    assert (put.returncode, put.stdout, put.stderr) == (0, "", "")
    got = await cluster.command("get", f"{OPEN_BUCKET}/one/file", str(tmp_path / "got"))
    assert (got.returncode, got.stdout, got.stderr) == (0, "", "")
    assert (tmp_path / "got").read_bytes() == sent.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["got", "sent"]
    listed = await cluster.command("ls", f"{OPEN_BUCKET}/one")
    assert listed.stdout.split("\t")[2] == "one/file\n"
    removed = await cluster.command("rm", f"{OPEN_BUCKET}/one/file")
    assert removed.returncode == 0
    assert (await cluster.command("get", f"{OPEN_BUCKET}/one/file", "-")).returncode == 3


async def test_a_stream_goes_in_and_out(cluster: Cluster) -> None:
    """`put -` takes standard input without knowing its length; `cat` gives it back."""
    put = await cluster.command("put", "-", f"{OPEN_BUCKET}/stream", stdin=b"line\n" * 100_000)
    assert put.returncode == 0, put.stderr
    out = await cluster.command("cat", f"{OPEN_BUCKET}/stream")
    assert out.stdout == "line\n" * 100_000


async def test_folders_go_in_and_out_whole(cluster: Cluster, tmp_path: Path) -> None:
    """-r stores and fetches everything below, with names as they were; rm -r removes it."""
    folder = tmp_path / "tree"
    contents = {f"a/{number}/ü {number}": os.urandom(number * 1000) for number in range(12)}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    refused = await cluster.command("put", str(folder), f"{OPEN_BUCKET}/tree")
    assert refused.returncode == 2
    put = await cluster.command("put", "-r", "--json", str(folder), f"{OPEN_BUCKET}/tree")
    receipts = {receipt["path"]: receipt["etag"] for receipt in json.loads(put.stdout)}
    assert receipts == {f"tree/{n}": blake3(data).hexdigest() for n, data in contents.items()}
    got = await cluster.command("get", "-r", f"{OPEN_BUCKET}/tree", str(tmp_path / "back"))
    assert got.returncode == 0, got.stderr
    assert {
        path.relative_to(tmp_path / "back").as_posix(): path.read_bytes()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    } == contents
    assert (await cluster.command("rm", "-r", f"{OPEN_BUCKET}/tree")).returncode == 0
    assert (await cluster.command("ls", f"{OPEN_BUCKET}/tree")).returncode == 3


async def test_exit_codes_tell_what_happened(cluster: Cluster, tmp_path: Path) -> None:
    """0 done, 1 failed, 2 wrong usage, 3 not found, 5 try again; always one sentence."""
    await cluster.command("put", "-", f"{OPEN_BUCKET}/there", stdin=b"x")
    for expected, arguments in (
        (3, ("get", f"{OPEN_BUCKET}/missing", str(tmp_path / "x"))),
        (3, ("rm", f"{OPEN_BUCKET}/missing")),
        (0, ("rm", "-f", f"{OPEN_BUCKET}/missing")),
        (3, ("ls", "missing-bucket")),
        (2, ("get", "default/")),
        (2, ("frobnicate",)),
        (1, ("put", "--new-only", __file__, f"{OPEN_BUCKET}/there")),
        (1, ("put", "/no/such/file", f"{OPEN_BUCKET}/x")),
        (5, ("ls", "--url", "http://127.0.0.1:1")),
        (1, ("status", "--key-file", str(_key_file(tmp_path)))),
    ):
        done = await cluster.command(*arguments)
        assert done.returncode == expected, (arguments, done)
        assert "Traceback" not in done.stderr
        assert bool(done.stderr) == (expected != 0), arguments
    assert not (tmp_path / "x").exists()


def _key_file(folder: Path) -> Path:
    path = folder / "wrong-key"
    path.write_text(f"hfk_{'0' * 16}_{'0' * 64}")
    return path


async def test_status_nodes_and_ring_tell_the_same_story(cluster: Cluster) -> None:
    """For people on a screen, and as JSON for programs."""
    status = json.loads((await cluster.command("status", "--json")).stdout)
    assert status["quorum"] is True
    assert status["raft"]["role"] == "leader"
    nodes = json.loads((await cluster.command("nodes", "--json")).stdout)
    assert [node["node_id"] for node in nodes] == [status["node_id"]]
    ring = json.loads((await cluster.command("ring", "--json")).stdout)
    assert [member["share"] for member in ring["members"]] == [1.0]
    screen = (await cluster.command("status")).stdout
    assert status["cluster_id"] in screen
    assert "settled" in screen
    assert status["chunks"]["complete"] is True
    assert [warning.split()[0] for warning in status["warnings"]] == ["1"]
    assert status["members"][0]["load"].keys() == status["load"].keys()


async def test_a_lost_admin_key_is_replaced_on_the_node_itself(cluster: Cluster) -> None:
    """The new key works, the old one doesn't any more."""
    done = await cluster.command("admin", "reset-key", "--data", str(cluster.nodes[0].data))
    assert done.returncode == 0, done.stderr
    assert (await cluster.command("status")).returncode == 1
    cluster.admin_key = done.stdout.strip()
    assert (await cluster.command("status")).returncode == 0


async def test_tokens_need_an_admin_key_or_the_data_directory(cluster: Cluster) -> None:
    """Nobody joins who was not invited."""
    by_key = await cluster.command("token")
    by_directory = await cluster.command("token", "--data", str(cluster.nodes[0].data))
    assert by_key.stdout.startswith("hfj_")
    assert by_directory.stdout.startswith("hfj_")
    key, cluster.admin_key = cluster.admin_key, ""
    try:
        assert (await cluster.command("token")).returncode == 1
    finally:
        cluster.admin_key = key


async def test_buckets_are_made_and_removed(cluster: Cluster) -> None:
    """A private bucket is hidden from those without a key."""
    assert (await cluster.command("bucket", "create", "private-one")).returncode == 0
    assert "private-one" in (await cluster.command("ls")).stdout
    await cluster.command("put", "-", "private-one/file", stdin=b"x")
    assert (await cluster.command("bucket", "remove", "private-one")).returncode == 1
    cascade = await cluster.command("bucket", "remove", "--cascade", "private-one")
    assert cascade.returncode == 0, cascade.stderr
    assert "private-one" not in (await cluster.command("ls")).stdout


async def test_metrics_show_the_node_as_well_as_its_requests(cluster: Cluster) -> None:
    """One scrape has Raft, chunks and repair besides the gateway's counters."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{cluster.nodes[0].url}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    figures = dict(
        line.split() for line in lines if line.startswith("holdfast_") and "{" not in line
    )
    assert figures["holdfast_raft_leader"] == "1.0"
    assert figures["holdfast_unrecoverable_chunks"] == "0.0"
    assert float(figures["holdfast_raft_applied_index"]) > 0
    assert any(line.startswith("holdfast_requests_total{") for line in lines)


async def test_settings_of_the_cluster_are_shown_and_changed(cluster: Cluster) -> None:
    """With units; `default` takes a change back, and what is no setting is wrong usage."""
    shown = await cluster.command("cluster", "settings")
    assert shown.returncode == 0, shown.stderr
    before = dict(line.split("\t") for line in shown.stdout.splitlines())
    changed = await cluster.command(
        "cluster", "settings", "--set", "repair_bytes_per_second=50MB", "--json"
    )
    assert changed.returncode == 0, changed.stderr
    assert json.loads(changed.stdout)["repair_bytes_per_second"] == 50_000_000
    assert (await cluster.status())["settings"]["repair_bytes_per_second"] == 50_000_000
    back = await cluster.command("cluster", "settings", "--set", "repair_bytes_per_second=default")
    assert dict(line.split("\t") for line in back.stdout.splitlines()) == before
    for wrong in ("repair_bytes_per_second=fast", "speed=1"):
        assert (await cluster.command("cluster", "settings", "--set", wrong)).returncode == 2


async def test_the_last_node_of_a_cluster_stays(cluster: Cluster) -> None:
    """Neither drained nor gone, whatever is said: somebody has to hold the chunks."""
    url = cluster.nodes[0].url
    for wish in ("drain", "leave"):
        refused = await cluster.command(wish, url, "--no-wait", "--reduce-copies")
        assert (refused.returncode, "No node would be left" in refused.stderr) == (1, True)
    removed = await cluster.command("remove", url, "--force")
    assert (removed.returncode, "No node would be left" in removed.stderr) == (1, True)
    unknown = await cluster.command("drain", "ffffffff")
    assert (unknown.returncode, "holdfast nodes" in unknown.stderr) == (3, True)


async def test_a_preview_is_shown_to_people_and_programs(cluster: Cluster) -> None:
    """What would move if a second node came: a copy of everything."""
    shown = await cluster.command("ring", "preview", "join", "--capacity", "100GB", "--zone", "b")
    assert shown.returncode == 0, shown.stderr
    assert "a new node joins: 4096 copies of partitions move" in shown.stdout
    assert "2 copies instead of 1" in shown.stdout
    refused = await cluster.command("ring", "preview", "leave", cluster.nodes[0].url)
    assert (refused.returncode, "no node would be left" in refused.stderr) == (1, True)
