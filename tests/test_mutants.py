"""The table of breaks fits the code: a protection that moved takes its break along."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.mutants import (
    END,
    PAGE,
    ROOT,
    Mutation,
    Report,
    failed_test,
    load_mutations,
    markdown,
    try_mutation,
    update_page,
)

MUTATIONS = load_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_break_can_be_applied(mutation: Mutation) -> None:
    """The snippet is in the file exactly once, what comes out is another program, and the tests
    that must turn red exist."""
    source = (ROOT / mutation.file).read_text()
    assert mutation.apply(source) != source
    assert mutation.tests
    for test in mutation.tests:
        path, *names = test.split("::")
        content = (ROOT / path).read_text()
        for name in names:
            assert name.split("[")[0] in content, f"{path} has no {name}"


def test_table_in_the_documentation() -> None:
    """docs/reliability.md shows the table as it is; `scripts/mutants --update` puts it there."""
    page = PAGE.read_text()
    assert update_page(page, markdown(MUTATIONS)) == page
    assert page.count(END) == 1


def small_tree(directory: Path) -> Path:
    """A program with one promise, and one test that holds it."""
    (directory / "program.py").write_text("def answer():\n    return 42\n")
    (directory / "test_program.py").write_text(
        "import program\n\n\ndef test_answer():\n    assert program.answer() == 42\n"
    )
    return directory


def attempt(directory: Path, find: str, replace: str, test: str = "test_answer") -> Report:
    mutation = Mutation(
        name="break",
        rule="",
        shows="",
        file="program.py",
        find=find,
        replace=replace,
        tests=[f"test_program.py::{test}"],
    )
    tree = small_tree(directory)
    report = try_mutation(tree, mutation)
    assert (tree / "program.py").read_text() == "def answer():\n    return 42\n"
    return report


def test_a_break_that_is_noticed(tmp_path: Path) -> None:
    """Where a test turns red the report is good, and names the test; the tree is restored."""
    report = attempt(tmp_path, "return 42", "return 41")
    assert (report.outcome, report.detail) == ("red", "test_program.py::test_answer")
    assert report.is_good


@pytest.mark.parametrize(
    ("find", "replace", "test", "outcome"),
    [
        ("return 42", "return 40 + 2", "test_answer", "survived"),
        ("return 43", "return 41", "test_answer", "invalid"),
        ("return 42", "return (", "test_answer", "invalid"),
        ("return 42", "return 41", "test_other", "invalid"),
        ("def answer", "def other():\n    pass\nimport nothing\ndef answer", "", "invalid"),
    ],
    ids=["harmless", "no such snippet", "no Python", "no such test", "no import"],
)
def test_a_break_that_shows_nothing(
    tmp_path: Path, find: str, replace: str, test: str, outcome: str
) -> None:
    """A break no test notices, or that was not really tried, is not good."""
    report = attempt(tmp_path, find, replace, test)
    assert report.outcome == outcome
    assert not report.is_good


def test_names_the_failed_test() -> None:
    output = "F\n===\nFAILED tests/a.py::test_b[1] - assert 1\n1 failed"
    assert failed_test(output) == "tests/a.py::test_b[1]"
    assert failed_test("1 passed") == ""
