"""Sizes and times as people write them: `50MB`, `1.5TiB`, `36h`. Pure.

The units of a size are the SI's (MB: a million) and the IEC's (MiB: 2^20); capital letters or not.
"""

from __future__ import annotations

import re
from decimal import Decimal

import click

_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)")

_SIZES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _SIZES[f"{_letter}b"] = 1000**_power
    _SIZES[f"{_letter}ib"] = 1024**_power

_TIMES = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_bytes(text: str) -> int:
    """`50MB` → 50,000,000. Raises click.BadParameter."""
    return _parsed(text, _SIZES, "a size like 500MB, 1.5TB or 64MiB")


def parse_rate(text: str) -> int:
    """Bytes per second: `50MB` or `50MB/s`. Raises click.BadParameter."""
    return _parsed(text.removesuffix("/s"), _SIZES, "a rate like 50MB or 64MiB (per second)")


def parse_seconds(text: str) -> int:
    """`36h` → 129,600. Raises click.BadParameter."""
    return _parsed(text, _TIMES, "a time like 90s, 30m, 12h or 14d")


def duration(seconds: float) -> str:
    """`3 h 20 min`: two units, enough for an estimate."""
    left = max(0, round(seconds))
    parts = []
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def _parsed(text: str, units: dict[str, int], wanted: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise click.BadParameter(f"{text!r} is not {wanted}")
    return int(Decimal(match[1]) * unit)
