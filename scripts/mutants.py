"""Show that every protection is held by a test: break each alone, and see that test turn red.

The breaks are tables in scripts/mutations/*.toml, one file for each part of the program:

    [[mutation]]
    name = "journal-flush-sync"          # unique, in words joined by hyphens
    rule = "M4"                          # the rule, hazard or promise that it breaks
    shows = "what is lost without it"    # one phrase, for the table in docs/reliability.md
    file = "metadata_raft/journal_files.py"
    find = '''...'''                     # occurs exactly once in the file
    replace = '''...'''
    tests = ["tests/metadata_raft/test_journal_crashes.py::test_power_cut_at_every_step"]

Each is applied to a copy of the tree; of `tests` one at least must fail. The product itself has no
switch that turns a protection off. Exit status 1: a break survived, its snippet is not found once,
or its tests are red without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "scripts" / "mutations"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- scripts/mutants --update: begin -->", "<!-- scripts/mutants --update: end -->"

TIMEOUT_SECONDS = 180
"""For one run of pytest. A break that makes a test hang was noticed as well."""

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    ".demo*", "*.egg-info", "build", "dist", "node_modules",
)  # fmt: skip

UNBROKEN_TIMEOUT_SECONDS = 1200
"""For all of the named tests at once, before anything is broken."""

PYTEST_FAILED = 1
"""pytest's exit status where tests ran and some failed; others mean that nothing was shown."""

Outcome = Literal["red", "timeout", "survived", "invalid"]


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One break; the fields are described above."""

    name: str
    rule: str
    shows: str
    file: str
    find: str
    replace: str
    tests: list[str]

    def apply(self, source: str) -> str:
        """The broken source. Raises ValueError where the snippet does not occur exactly once, or
        what comes out is no Python."""
        count = source.count(self.find)
        if count != 1:
            raise ValueError(f"{self.name}: its snippet occurs {count} times in {self.file}")
        broken = source.replace(self.find, self.replace)
        if self.file.endswith(".py"):
            try:
                compile(broken, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"{self.name}: broken beyond Python: {error}") from error
        return broken


class Report(msgspec.Struct, frozen=True):
    name: str
    outcome: Outcome
    seconds: float
    detail: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in {"red", "timeout"}


def load_mutations(directory: Path = TABLES) -> list[Mutation]:
    """All tables, in the order of their file names. Raises ValueError for a name used twice."""
    mutations: list[Mutation] = []
    for path in sorted(directory.glob("*.toml")):
        table = tomllib.loads(path.read_text())
        mutations += msgspec.convert(table["mutation"], list[Mutation])
    names = [mutation.name for mutation in mutations]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"names used twice: {', '.join(sorted(repeated))}")
    return mutations


def run_tests(
    tree: Path, tests: Sequence[str], timeout_seconds: float = TIMEOUT_SECONDS
) -> tuple[int | None, str]:
    """pytest's exit status in a tree, None where it took too long, and the end of its output."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        # What the tests started has the same session, and goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""
    return process.returncode, "\n".join(output.strip().splitlines()[-15:])


def try_mutation(tree: Path, mutation: Mutation) -> Report:
    """Apply a break to the tree, run its tests, and restore the tree."""
    path = tree / mutation.file
    source = path.read_text()
    started = time.monotonic()
    try:
        path.write_text(mutation.apply(source))
        status, output = run_tests(tree, mutation.tests)
    except ValueError as error:
        return Report(mutation.name, "invalid", 0.0, str(error))
    finally:
        path.write_text(source)
    seconds = time.monotonic() - started
    if status is None:
        return Report(mutation.name, "timeout", seconds)
    if status == PYTEST_FAILED:
        return Report(mutation.name, "red", seconds, failed_test(output))
    if status == 0:
        return Report(mutation.name, "survived", seconds, "its tests stay green")
    return Report(mutation.name, "invalid", seconds, f"pytest ended with {status}:\n{output}")


def failed_test(output: str) -> str:
    """The first test named as failed in pytest's summary."""
    for line in output.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ")[1].split(" - ")[0]
    return ""


@contextlib.contextmanager
def copies_of_the_tree(count: int) -> Iterator[queue.Queue[Path]]:
    with tempfile.TemporaryDirectory(prefix="holdfast-mutants-") as directory:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(count):
            tree = Path(directory) / str(number)
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
            trees.put(tree)
        yield trees


def run(mutations: Sequence[Mutation], jobs: int) -> Iterator[Report]:
    """Reports in the order in which they are done; first, that the tests are green unbroken."""
    with copies_of_the_tree(jobs) as trees, ThreadPoolExecutor(jobs) as pool:
        tree = trees.get()
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        started = time.monotonic()
        status, output = run_tests(tree, tests, UNBROKEN_TIMEOUT_SECONDS)
        trees.put(tree)
        if status != 0:
            seconds = time.monotonic() - started
            detail = output if status is not None else "took too long"
            yield Report("(nothing broken)", "invalid", seconds, f"the tests are red:\n{detail}")
            return

        def attempt(mutation: Mutation) -> Report:
            tree = trees.get()
            try:
                return try_mutation(tree, mutation)
            finally:
                trees.put(tree)

        yield from pool.map(attempt, mutations)


def markdown(mutations: Sequence[Mutation]) -> str:
    """The table of docs/reliability.md."""
    lines = ["| break | rule | what it costs | red |", "|---|---|---|---|"]
    for mutation in mutations:
        tests = ", ".join(f"`{test.rsplit('/', 1)[-1]}`" for test in mutation.tests)
        lines.append(f"| `{mutation.name}` | {mutation.rule} | {mutation.shows} | {tests} |")
    return "\n".join(lines)


def update_page(page: str, table: str) -> str:
    """The page with the table between its two marks."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Break protections one by one; see tests fail.")
    parser.add_argument("--only", metavar="TEXT", help="those whose name or file contains TEXT")
    parser.add_argument("--list", action="store_true", help="name them and do nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table and do nothing")
    parser.add_argument("--update", action="store_true", help="put it into docs/reliability.md")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    arguments = parser.parse_args()
    mutations = [
        mutation
        for mutation in load_mutations()
        if arguments.only is None
        or arguments.only in mutation.name
        or arguments.only in mutation.file
    ]
    if arguments.list:
        print("\n".join(f"{mutation.name:40} {mutation.file}" for mutation in mutations))
        return 0
    if arguments.markdown:
        print(markdown(mutations))
        return 0
    if arguments.update:
        PAGE.write_text(update_page(PAGE.read_text(), markdown(load_mutations())))
        return 0
    if not mutations:
        print(f"no break matches {arguments.only!r}; see --list", file=sys.stderr)
        return 2
    reports: list[Report] = []
    for report in run(mutations, arguments.jobs):
        reports.append(report)
        if not arguments.json:
            print(f"{report.outcome:9} {report.seconds:6.1f} s  {report.name:40} {report.detail}")
            sys.stdout.flush()
    bad = [report for report in reports if not report.is_good]
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(reports), indent=2))
    else:
        print(f"{len(reports) - len(bad)} of {len(mutations)} breaks turned a test red")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
