"""The verdict of a benchmark is right: medians, ratios, bars, and the table of them."""

from __future__ import annotations

import math

import pytest

from loadtests.measurements import (
    Bar,
    Measurement,
    Report,
    longest_gap,
    median_of,
    percentile,
    ratio_of,
    table,
)


def _report(*measurements: Measurement) -> Report:
    return Report(
        benchmark="cluster", started="2000-01-01", machine={"cpu": "two"}, measurements=measurements
    )


def test_a_bar_bounds_one_side_and_includes_its_edge() -> None:
    """A value on the bar passes, one beyond it fails, and a failed measurement never passes."""
    assert Bar(at_least=0.14).holds(0.14)
    assert not Bar(at_least=0.14).holds(0.1399)
    assert Bar(at_most=10).holds(10)
    assert not Bar(at_most=10).holds(10.1)
    assert not Bar(at_most=10).holds(math.nan)
    assert not Bar(at_least=10).holds(math.nan)


def test_ratios_pair_neighbouring_runs() -> None:
    """A machine that slows down for both alike does not change the ratio."""
    measurement = ratio_of("PUT", [50, 5, 500], [100, 10, 1000], "requests/s")
    assert measurement.value == 0.5
    assert measurement.samples == (0.5, 0.5, 0.5)
    assert measurement.detail == "50 of 100 requests/s"


def test_ratios_need_as_many_runs_on_both_sides() -> None:
    """A run without its neighbour is an error and not a silently shorter list."""
    with pytest.raises(ValueError, match="shorter"):
        ratio_of("PUT", [1.0, 2.0], [1.0], "requests/s")


def test_the_percentile_is_the_nearest_rank() -> None:
    """p99 of 100 samples is the 99th, not the greatest; of few samples it is the greatest."""
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([5.0], 0.5) == 5.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 0.5)


def test_one_missed_bar_fails_the_report_and_is_marked() -> None:
    """A report passes if every bar holds; the table names the bar that was missed."""
    good = median_of("upload", [0.2, 0.3, 0.1], "of bare", bar=Bar(at_least=0.14))
    bad = median_of("first byte p99", [12.0], "ms", bar=Bar(at_most=10))
    noted = median_of("idle", [1e9], "bytes")
    assert _report(good, noted).passed()
    assert not _report(good, bad, noted).passed()
    lines = table(_report(good, bad, noted)).splitlines()
    assert "cpu: two" in lines
    missed = [line for line in lines if "MISSED" in line]
    assert len(missed) == 1
    assert missed[0].startswith("! first byte p99")


def test_the_longest_gap_spans_the_kill() -> None:
    """A fail-over lasts from the last success before the kill to the first one after it."""
    assert longest_gap([1.0, 2.0, 2.1, 4.6, 4.7], start=2.2, end=5.0) == pytest.approx(2.5)
    # Writes that never come back count for the whole time that was watched.
    assert longest_gap([1.0, 2.0], start=2.5, end=7.0) == 5.0
    assert longest_gap([], start=2.0, end=7.0) == 5.0
    # What happens after the end does not count.
    assert longest_gap([2.0, 3.0, 9.0], start=2.0, end=4.0) == 1.0
