"""Larger searches by hand, for example

python -m tests.model --owners 0/1/0 --generations 2 --uploads 2 --deletions 1 --restarts 1
python -m tests.model --owners 0/1 --leaves 0 --generations 2 --without departure_raises_floor

A million states take about a minute and two gigabytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields

from tests.model.search import search
from tests.model.world import ALL_RULES, Rules, Scenario


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--owners", default="0/1/0", help="of each epoch: 0,1/1,2 (default 0/1/0)")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--generations", type=int, default=1)
    parser.add_argument("--uploads", type=int, default=1)
    parser.add_argument("--deletions", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--gateways", type=int, default=1, help="uploads at the same time")
    parser.add_argument("--leaves", type=int, help="the node that the last epoch is without")
    parser.add_argument("--no-handoffs", action="store_true")
    parser.add_argument("--no-leaks", action="store_true", help="look for losses only")
    parser.add_argument("--states", type=int, default=2_000_000, help="where to give up")
    parser.add_argument(
        "--without", choices=[field.name for field in fields(Rules)], help="leave a rule out"
    )
    arguments = parser.parse_args()
    owners = tuple(
        tuple(int(node) for node in epoch.split(",")) for epoch in arguments.owners.split("/")
    )
    scenario = Scenario(
        owners=owners,
        generations=arguments.generations,
        uploads=arguments.uploads,
        deletions=arguments.deletions,
        restarts=arguments.restarts,
        nodes=arguments.nodes,
        gateways=arguments.gateways,
        leaves=arguments.leaves,
        has_handoffs=not arguments.no_handoffs,
    )
    rules = ALL_RULES if arguments.without is None else ALL_RULES.without(arguments.without)
    started = time.monotonic()
    finding = search(scenario, rules, states_max=arguments.states, leaks=not arguments.no_leaks)
    seconds = time.monotonic() - started
    print(f"{finding.verdict}: {finding.states:,} states in {seconds:.0f} s")
    for number, step in enumerate(finding.story, 1):
        print(f"  {number}. {step}")
    return 0 if finding.verdict == "safe" else 1


if __name__ == "__main__":
    sys.exit(main())
