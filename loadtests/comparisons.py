"""A cluster against the bare handler: small requests, and streams of 1 GiB.

In every repetition the two are driven one right after the other, and the ratio of the neighbours
counts, so that what a noisy machine did meanwhile is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.cluster_rig import STREAM_SIZE, Rig, Workload, rate, say
from loadtests.measurements import Bar, Measurement, median_of, ratio_of
from loadtests.request_generator import Outcome, generate
from loadtests.stream_client import download


def compare_requests(
    rig: Rig, workloads: Sequence[Workload], *, suffix: str = "", first_run: int = 0
) -> list[Measurement]:
    """Return rate (as a ratio) and p99 of each workload; `suffix` ends the names.

    Runs are numbered from `first_run`: two comparisons on one cluster must not share numbers, or
    their PUTs would meet the same paths and contents.
    """
    ours: dict[Workload, list[Outcome]] = {workload: [] for workload in workloads}
    bare: dict[Workload, list[Outcome]] = {workload: [] for workload in workloads}
    for repetition in range(rig.repetitions):
        say(f"requests{suffix}, repetition {repetition + 1} of {rig.repetitions} ...")
        for workload in workloads:
            run = first_run + repetition
            bare[workload].append(generate(rig.bare_requests(workload, run)))
            ours[workload].append(generate(rig.our_requests(workload, run)))
    measured = []
    for workload in workloads:
        name = workload.name() + suffix
        measured.append(
            ratio_of(
                name,
                [outcome.rate() for outcome in ours[workload]],
                [outcome.rate() for outcome in bare[workload]],
                "requests/s",
                bar=workload.bar,
            )
        )
        measured.append(median_of(f"{name}, p99", [each.p99_ms for each in ours[workload]], "ms"))
    return measured


def compare_streams(
    rig: Rig, *, upload_bar: Bar, download_bar: Bar, suffix: str = ""
) -> list[Measurement]:
    """Return the ratios of one upload and one download of 1 GiB, through changing nodes.

    Raises AssertionError where what comes back is not what went in.
    """
    up: list[float] = []
    up_bare: list[float] = []
    down: list[float] = []
    down_bare: list[float] = []
    for repetition in range(rig.repetitions):
        say(f"streams{suffix}, repetition {repetition + 1} of {rig.repetitions} ...")
        node = rig.nodes[repetition % len(rig.nodes)]
        other = rig.nodes[(repetition + 1) % len(rig.nodes)]
        path = f"stream{suffix.replace(' ', '-').replace(',', '')}/{repetition}"
        sink = rig.bare_target("/sink/stream")
        spring = rig.bare_target(f"/source/{STREAM_SIZE}/stream")
        sunk = rig.source.upload(sink, identity=0, size=STREAM_SIZE)
        identity = rig.identity()
        stored = rig.upload_as(identity, node, path, STREAM_SIZE)
        up_bare.append(rate(sunk))
        up.append(rate(stored))
        down_bare.append(rate(download(spring)))
        down.append(rate(download(rig.target(other, path))))
        checked = download(rig.target(other, path), verify=True)
        if checked.checksum != rig.source.checksum(identity, STREAM_SIZE):
            raise AssertionError(f"{path} came back with other contents")
    return [
        ratio_of(f"1 GiB upload{suffix}", up, up_bare, "MB/s", bar=upload_bar),
        ratio_of(f"1 GiB download{suffix}", down, down_bare, "MB/s", bar=download_bar),
    ]
