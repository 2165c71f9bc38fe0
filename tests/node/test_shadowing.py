"""Another distribution that answers to one of our package names is found out."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from node.errors import ShadowedError
from node.shadowing import PACKAGES, check, compare

ROOT = Path(__file__).resolve().parents[2]


def test_our_own_packages_are_accepted() -> None:
    """All four packages of this tree stand beside each other."""
    check()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("place", [None, "/usr/lib/python3/dist-packages"])
def test_a_package_from_elsewhere_or_none_is_named(package: str, place: str | None) -> None:
    """The sentence names the package and what to do."""
    with pytest.raises(ShadowedError, match=f"`{package}`.*virtual environment of its own"):
        compare(
            "/opt/holdfast", PACKAGES, lambda name: place if name == package else "/opt/holdfast"
        )


def test_the_command_says_it_and_fails(tmp_path: Path) -> None:
    """`holdfast` with a foreign `ring` earlier on the path prints one sentence and exits with 1."""
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "__init__.py").write_text("")
    code = "import sys; from node.__main__ import main; sys.argv = ['holdfast', 'ls']; main()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; {code}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "The package `ring` of Holdfast was found in" in done.stderr


def test_a_foreign_node_package_is_said_too(tmp_path: Path) -> None:
    """The entry point itself may come from us while `node` is somebody else's."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text("")
    (tmp_path / "entry.py").write_bytes((ROOT / "node" / "__main__.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", "import entry; entry.main()"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "another distribution with that name is installed" in done.stderr


def test_names_are_those_that_are_installed() -> None:
    """The check covers exactly the packages that the distribution brings."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    installed = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {
        name for name in installed if any(fnmatch(name, pattern) for pattern in patterns)
    } == set(PACKAGES)
