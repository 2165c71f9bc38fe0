"""Names as they may be shown: what a stranger called a file must not steer the terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` on one line: what is no letter, sign or space becomes an escape like `\n`, `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
