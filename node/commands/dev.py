"""`holdfast dev`: a whole cluster on this machine, for a first try."""

from __future__ import annotations

import click

from node.development import OPEN_BUCKET, DevelopmentCluster, stop_on_signals


@click.command("dev")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--data", metavar="DIR", help="Keep the contents here; else they go at the end.")
def command(nodes: int, data: str | None) -> None:
    """Run a cluster of several nodes on loopback until Ctrl-C.

    Everybody on this machine may read and write the bucket `default`. A node that dies is started
    again after some seconds.
    """
    cluster = DevelopmentCluster(data, nodes, click.echo)
    stop_on_signals(cluster)
    try:
        cluster.start()
        for line in welcome(cluster):
            click.echo(line)
        cluster.watch()
        click.echo("Stopping ...")
    finally:
        cluster.stop()


def welcome(cluster: DevelopmentCluster) -> list[str]:
    """Where everything is, and lines to copy."""
    first, last = cluster.nodes[0], cluster.nodes[-1]
    return [
        "",
        "The cluster is ready:",
        *(
            f"  node {node.number}   {node.url}   process {node.pid}, log {node.log_path}"
            for node in cluster.nodes
        ),
        f"  admin key in {cluster.admin_key_path}",
        "",
        "Try:",
        f"  export HOLDFAST_URL={first.url}",
        f"  holdfast put README.md {OPEN_BUCKET}/readme",
        f"  curl -T README.md {first.url}/api/v1/files/{OPEN_BUCKET}/readme",
        f"  curl {last.url}/api/v1/files/{OPEN_BUCKET}/readme",
        f"  HOLDFAST_KEY_FILE={cluster.admin_key_path} holdfast status",
        f"  kill -9 {first.pid}      # the others go on; it is started again",
        "",
        "Ctrl-C stops it.",
    ]
