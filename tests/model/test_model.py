"""Rules D1, D4, D5, D6 and D10, searched exhaustively: each order of steps that a small world has.

The model is of the rules, not of the code: `tests/ring/test_race.py` drives the code. What the
search found while the rules were made stands in docs/decisions/0034-model-of-the-rules.md.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from tests.model.scenarios import EXPERIMENTS
from tests.model.search import search
from tests.model.world import ALL_RULES, Rules

LEAKS_UP_TO_NODES = 2
"""With three, all orders of their tasks take longer than the rest."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_order_of_steps_loses_or_leaks_a_chunk(name: str) -> None:
    """With all rules, a chunk that a file refers to stays, and nothing else does."""
    scenario = EXPERIMENTS[name].scenario
    finding = search(scenario, ALL_RULES, leaks=scenario.nodes <= LEAKS_UP_TO_NODES)
    assert finding.verdict == "safe", "\n".join(finding.story)


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name, each in EXPERIMENTS.items() for rule in each.loses_without],
)
def test_without_the_rule_a_chunk_is_lost(name: str, rule: str) -> None:
    """Each protection is needed: without it the search finds how a file loses its chunk."""
    finding = search(EXPERIMENTS[name].scenario, ALL_RULES.without(rule), leaks=False)
    assert finding.verdict == "lost"
    assert finding.story


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name, each in EXPERIMENTS.items() for rule in each.leaks_without],
)
def test_without_the_rule_space_is_leaked(name: str, rule: str) -> None:
    """Each of these is needed for space to come back, or for copies to go where they belong."""
    finding = search(EXPERIMENTS[name].scenario, ALL_RULES.without(rule))
    assert finding.verdict == "leaked"


def test_every_rule_of_the_model_is_shown_to_be_needed() -> None:
    """A protection that nothing depends on would be in the model, and the product, for nothing."""
    needed = {
        rule for each in EXPERIMENTS.values() for rule in each.loses_without + each.leaks_without
    }
    assert needed == {field.name for field in fields(Rules)}
