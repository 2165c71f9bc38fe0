"""What a benchmark yields: measurements, the bars they have to reach, and a table of both.

Pure functions of numbers, so that a benchmark's verdict can be tested without a cluster. A
measurement is the median of interleaved repetitions; a bar is a bound on one measurement.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec


class Bar(msgspec.Struct, frozen=True):
    """A bound that one measurement has to keep: at least, or at most, so much."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` keeps the bound. NaN, the mark of a failed measurement, never does."""
        if math.isnan(value):
            return False
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def describe(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}"


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table; `samples` are the repetitions that `value` is the median of."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    detail: str = ""
    samples: tuple[float, ...] = ()

    def passed(self) -> bool:
        return self.bar is None or self.bar.holds(self.value)


def failed(name: str, error: BaseException) -> Measurement:
    """Return the measurement of a part that broke off: no bar holds for it."""
    return Measurement(
        name=name, value=math.nan, unit="", bar=Bar(at_least=0), detail=f"FAILED: {error}"
    )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of one run, as it is stored in JSON."""

    benchmark: str
    started: str
    """UTC, ISO 8601."""
    machine: dict[str, str]
    measurements: tuple[Measurement, ...]

    def passed(self) -> bool:
        return all(measurement.passed() for measurement in self.measurements)


def median_of(
    name: str, samples: Sequence[float], unit: str, *, bar: Bar | None = None, detail: str = ""
) -> Measurement:
    """Return the measurement whose value is the median of `samples` (at least one)."""
    return Measurement(
        name=name,
        value=statistics.median(samples),
        unit=unit,
        bar=bar,
        detail=detail,
        samples=tuple(samples),
    )


def ratio_of(
    name: str,
    ours: Sequence[float],
    bare: Sequence[float],
    unit: str,
    *,
    bar: Bar | None = None,
) -> Measurement:
    """Return the median of the ratios of runs made next to each other.

    Pairing each run with its neighbour in time, instead of dividing two medians, cancels what the
    machine did meanwhile (a noisy neighbour, a warm or cold cache).
    """
    ratios = [mine / reference for mine, reference in zip(ours, bare, strict=True)]
    middle_ours, middle_bare = statistics.median(ours), statistics.median(bare)
    return median_of(
        name, ratios, "of bare", bar=bar, detail=f"{middle_ours:,.0f} of {middle_bare:,.0f} {unit}"
    )


def percentile(samples: Iterable[float], fraction: float) -> float:
    """Return the nearest-rank percentile: the smallest sample that `fraction` do not exceed.

    Raises ValueError without samples.
    """
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("a percentile needs at least one sample")
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def longest_gap(times: Sequence[float], start: float, end: float) -> float:
    """Return the longest time without a success between `start` and `end`.

    The gap may begin before `start`: the last success before it counts as its beginning.
    """
    marks = [mark for mark in times if mark < end]
    before = [mark for mark in marks if mark <= start]
    points = [before[-1] if before else start, *[mark for mark in marks if mark > start], end]
    return max(later - earlier for earlier, later in itertools.pairwise(points))


def table(report: Report) -> str:
    """Return the report as text: one aligned line a measurement, and the verdict on each bar."""
    rows = [("", "measured", "bar", "")]
    for measurement in report.measurements:
        verdict = "" if measurement.bar is None else measurement.bar.describe()
        rows.append(
            (
                ("  " if measurement.passed() else "! ") + measurement.name,
                f"{measurement.value:,.4g} {measurement.unit}"
                if measurement.value < 100
                else f"{measurement.value:,.0f} {measurement.unit}",
                verdict if measurement.passed() else f"{verdict}  MISSED",
                measurement.detail,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {bar:<{widths[2]}}  {detail}".rstrip()
        for name, value, bar, detail in rows
    ]
    facts = [f"{key}: {value}" for key, value in report.machine.items()]
    return "\n".join([f"{report.benchmark}, {report.started}", *facts, "", *lines])
