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
from loadtests.measurements import Measurement, Report, failed, table
from loadtests.request_generator import GeneratorError
from loadtests.stream_client import TransferError

_DISK = "/var/tmp"
"""On a disk by convention, where /tmp may be memory, and a sync in memory measures nothing."""


def main() -> None:
    """Run what the arguments say; exit code 1 if a bar was missed."""
    options = _arguments().parse_args()
    reports = []
    wanted = ("cluster", "metadata") if options.benchmark == "all" else (options.benchmark,)
    for benchmark in wanted:
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=options.directory) as folder:
            reports.append(_run(benchmark, Path(folder), options))
        print(table(reports[-1]), end="\n\n", flush=True)
        if options.json:
            encoded = msgspec.json.format(msgspec.json.encode(reports))
            Path(options.json).write_bytes(encoded + b"\n")
    sys.exit(0 if all(report.passed() for report in reports) else 1)


def _run(benchmark: str, folder: Path, options: argparse.Namespace) -> Report:
    facts = machine.facts(str(folder))
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if benchmark == "cluster":
        measurements = asyncio.run(_run_cluster(folder, options))
    else:
        measurements = _run_metadata(folder, options)
    return Report(
        benchmark=benchmark, started=started, machine=facts, measurements=tuple(measurements)
    )


async def _run_cluster(folder: Path, options: argparse.Namespace) -> list[Measurement]:
    measured: list[Measurement] = []
    parts = _parts(options.only, cluster_benchmark.PARTS)
    async with cluster_benchmark.prepared(
        folder, repetitions=options.repetitions, seconds=options.seconds
    ) as prepared:
        for part in parts:
            try:
                async for measurement in prepared.run(part):
                    # One by one: a part that breaks off keeps what it has measured.
                    measured.append(_told(measurement))  # noqa: PERF401
            except (GeneratorError, TransferError, AssertionError, OSError) as error:
                measured.append(_told(failed(part, error)))
    return measured


def _run_metadata(folder: Path, options: argparse.Namespace) -> list[Measurement]:
    measured: list[Measurement] = []
    for part in _parts(options.only, metadata_benchmark.PARTS):
        try:
            for measurement in metadata_benchmark.run(
                folder, part, repetitions=options.repetitions, seconds=options.seconds
            ):
                measured.append(_told(measurement))  # noqa: PERF401  # As above.
        except (metadata_benchmark.GroupError, OSError) as error:
            measured.append(_told(failed(part, error)))
    return measured


def _told(measurement: Measurement) -> Measurement:
    """Say what was measured while the rest is still to come."""
    print(
        f"  {measurement.name}: {measurement.value:,.4g} {measurement.unit} ({measurement.detail})",
        file=sys.stderr,
        flush=True,
    )
    return measurement


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
