"""Every parser against its seeds, what once failed, and some mutations: ``python -m tests.fuzz`` in short."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS
from tests.fuzz.watching import Finding, bounded, judge


def test_every_target_has_seeds_and_every_folder_of_seeds_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_accepted_or_refused(name: str, tmp_path: Path) -> None:
    target, source = TARGETS[name], random.Random(0)
    path = target.placed(tmp_path)
    seeds = target.seeds(name)
    with bounded():
        outcomes = {seed: judge(target, path, content) for seed, content in seeds.items()}
        assert not [outcome for outcome in outcomes.values() if isinstance(outcome, Finding)]
        # After a change of a format: python -m tests.fuzz.seeds
        assert any(outcome is True for outcome in outcomes.values()), outcomes
        for index in range(target.mutations):
            content = target.mutate(source.choice(list(seeds.values())), source)
            outcome = judge(target, path, content)
            assert isinstance(outcome, bool), f"mutation {index}: {outcome.text}"
