"""No secret ever stands in a log, a metric, or an answer that is not there to tell it."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.cluster import Cluster, running_cluster

pytestmark = pytest.mark.processes


async def raw(cluster: Cluster, request: bytes) -> bytes:
    """Send bytes to the first node, whatever they are; its answer as far as there is one."""
    url = urllib.parse.urlsplit(cluster.nodes[0].url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(request)
    writer.write_eof()
    async with asyncio.timeout(60):
        answer = await reader.read(-1)
    writer.close()
    return answer


def secrets_in(text: str, secrets: dict[str, str]) -> list[str]:
    return [name for name, secret in secrets.items() if secret in text]


async def test_no_secret_is_in_logs_or_metrics(tmp_path: Path) -> None:
    """Keys and tokens are used, misused, sent in the wrong places and in broken requests; a node
    joins and restarts; all at the most talkative level. None of it is found anywhere afterwards."""
    async with running_cluster(tmp_path, 2, log_level="debug", log_format="json") as cluster:
        first, second = cluster.nodes
        key = cluster.admin_key
        made = json.loads((await cluster.command("token", "--json")).stdout)["token"]
        another = f"hfk_{'c0ffee00' * 2}_{'feedface' * 8}"
        identity = json.loads((first.data / "identity.json").read_text())
        secrets = {
            "the admin key": key.rpartition("_")[2],
            "a key that is not known": another.rpartition("_")[2],
            "a token": made,
            "the token of the second node": (tmp_path / "token-2").read_text().strip(),
            "the cluster's secret": identity["cluster_secret"],
        }
        assert all(len(secret) >= 32 for secret in secrets.values())
        answers = []
        async with aiohttp.ClientSession() as session:
            for token in (key, another, made, "Bearer"):
                headers = {"Authorization": f"Bearer {token}"}
                for method, path in (
                    ("GET", "/api/v1/keys"),
                    ("GET", "/api/v1/cluster"),
                    ("GET", "/api/v1/cluster/ring"),
                    ("GET", "/api/v1/files/default/none"),
                    ("GET", f"/api/v1/files/default?key={key}"),
                    ("GET", f"/nowhere/{key}"),
                    ("DELETE", f"/api/v1/keys/{key}"),
                    ("POST", "/api/v1/cluster/join"),
                    ("GET", "/health/ready?maintenance=true"),
                ):
                    async with session.request(
                        method, first.url + path, headers=headers, data=made.encode()
                    ) as response:
                        text = await response.text()
                        # A mistake in a path may be told to whoever made it.
                        if key not in path:
                            answers.append(text)
        # Requests that no parser likes, with a key in each part.
        for request in (
            f"GET /api/v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\x00\r\n\r\n",
            f"GET /api/v1/keys HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n",
            f"GET /{key} HTTP/9.9\r\n\r\n",
            f"{key}\r\n\r\n",
            f"POST /api/v1/cluster/join HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{made}",
        ):
            await raw(cluster, request.encode("latin-1"))
        used = tmp_path / "used-token"
        used.write_text((tmp_path / "token-2").read_text())
        third = cluster.add_process()
        third.start(token_path=used)
        assert await third.wait_exit(timeout_seconds=60) == 1
        commands = [
            await cluster.command(*arguments)
            for arguments in (("status",), ("nodes", "--json"), ("ring",), ("ls", "default"))
        ]
        assert await second.stop() == 0
        second.start()
        await second.wait_ready()
        async with aiohttp.ClientSession() as session:
            for node in (first, second):
                for path in ("/metrics", "/openapi.json", "/health/live"):
                    async with session.get(node.url + path) as response:
                        answers.append(await response.text())
        for node in cluster.nodes:
            assert await node.stop() == 0 if node.running else True
            log = node.log_path.read_text(errors="replace")
            assert "lifecycle" in log
            assert secrets_in(log, secrets) == [], node.number
            lines = [line for line in log.splitlines() if line.startswith("{")]
            expected = {"time", "level", "logger", "message", "node"}
            assert all(expected <= set(json.loads(line)) for line in lines)
            assert "epoch" in json.loads(lines[-1]) or node is third
        for text in [*answers, *(done.stdout + done.stderr for done in commands)]:
            assert secrets_in(text, secrets) == []
