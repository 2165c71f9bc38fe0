"""The guide as a whole: no page is left out of the tests, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.end_to_end.recipes import FOLDER, steps

PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

_LINK = re.compile(r"\]\(([^)#:]*)(?:#([a-z0-9-]+))?\)")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_commands_is_run(page: str) -> None:
    """A page whose shell no test runs would rot; all its shell is marked, and a test takes it."""
    if steps(page):
        assert f'recipe("{page}", ' in TESTS


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Files exist, and so do the headings that links name."""
    for target, heading in _LINK.findall((FOLDER / page).read_text()):
        path = FOLDER / (target or page)
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings
            }
            assert heading in slugs, f"{target}#{heading}"


def test_every_page_is_named_in_the_first_one() -> None:
    """Whoever opens the folder finds all that is in it."""
    first = (FOLDER / "README.md").read_text()
    for path in FOLDER.iterdir():
        assert path.name == "README.md" or f"]({path.name})" in first, path.name
