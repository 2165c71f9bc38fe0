"""Finds out at start whether another distribution answers to one of our package names.

Distributions named `node` and `ring` exist on PyPI. In an environment shared with one of them the
import system may hand us theirs; nothing good follows, so the start says it. Uses the standard
library only, because it runs before anything of ours is imported.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable

from node.errors import ShadowedError

PACKAGES = ("node", "ring", "metadata_raft", "gateway")


def check() -> None:
    """Raise ShadowedError unless all four packages stand beside this one."""
    compare(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), PACKAGES, _location)


def compare(home: str, packages: Iterable[str], locate: Callable[[str], str | None]) -> None:
    """The decision alone: `locate` gives the folder that holds a package, None if there is none."""
    for package in packages:
        found = locate(package)
        if found is None or os.path.realpath(found) != os.path.realpath(home):
            place = f"was found in {found}" if found else "was not found"
            raise ShadowedError(
                f"The package `{package}` of Holdfast {place} instead of {home}: another "
                "distribution with that name is installed in this environment. Holdfast is an "
                "application: give it a virtual environment of its own (or pipx, or a container)."
            )


def _location(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return os.path.dirname(os.path.abspath(next(iter(spec.submodule_search_locations))))
    return os.path.dirname(os.path.abspath(spec.origin)) if spec.origin else None
