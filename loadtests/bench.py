"""The command line of `scripts/bench`: runs benchmarks, prints the table, holds it to the bars."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtests import cluster_benchmark, machine, metadata_benchmark
from loadtests.measurements import Report, table

_DISK = "/var/tmp"
"""On a disk by convention, where /tmp may be memory, and a sync in memory measures nothing."""


def main() -> None:
    """Run what the arguments say; exit code 1 if a bar was missed."""
    options = _arguments().parse_args()
    reports = []
    wanted = ("cluster", "metadata") if options.benchmark == "all" else (options.benchmark,)
    for benchmark in wanted:
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=options.directory) as folder:
            reports.append(asyncio.run(_run(benchmark, Path(folder), options)))
        print(table(reports[-1]), end="\n\n", flush=True)
        if options.json:
            encoded = msgspec.json.format(msgspec.json.encode(reports))
            Path(options.json).write_bytes(encoded + b"\n")
    sys.exit(0 if all(report.passed() for report in reports) else 1)


async def _run(benchmark: str, folder: Path, options: argparse.Namespace) -> Report:
    facts = machine.facts(str(folder))
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if benchmark == "cluster":
        parts = _parts(options.only, cluster_benchmark.PARTS)
        async with cluster_benchmark.prepared(
            folder, repetitions=options.repetitions, seconds=options.seconds
        ) as prepared:
            measurements = [measurement async for measurement in prepared.run(parts)]
    else:
        parts = _parts(options.only, metadata_benchmark.PARTS)
        measurements = await asyncio.to_thread(
            lambda: list(
                metadata_benchmark.run(
                    folder, parts, repetitions=options.repetitions, seconds=options.seconds
                )
            )
        )
    return Report(
        benchmark=benchmark, started=started, machine=facts, measurements=tuple(measurements)
    )


def _parts(only: str | None, all_parts: Sequence[str]) -> Sequence[str]:
    """Return the parts to run, in the order of `all_parts`."""
    if only is None:
        return all_parts
    unknown = set(only.split(",")) - set(all_parts)
    if unknown:
        sys.exit(f"--only takes {', '.join(all_parts)}; not {', '.join(sorted(unknown))}")
    return [part for part in all_parts if part in only.split(",")]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure Holdfast on this machine; exits 1 where a bar is missed.",
    )
    parser.add_argument(
        "benchmark", nargs="?", default="all", choices=["all", "cluster", "metadata"]
    )
    parser.add_argument("--only", help="parts to run, with commas between them", metavar="PARTS")
    parser.add_argument("--json", help="also write all figures to this file", metavar="FILE")
    parser.add_argument("--repetitions", type=int, default=3, help="runs a median is taken of")
    parser.add_argument("--seconds", type=int, default=5, help="length of a run of requests")
    parser.add_argument("--directory", default=_DISK, help=f"where the data go ({_DISK})")
    return parser


if __name__ == "__main__":
    main()
