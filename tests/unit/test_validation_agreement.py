"""Decisions and accuracy of the exported model against the simulated subnet, and what chance allows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.validation.agreement import Answers, ExportDrop, compare_accuracy, compare_decisions
from eqdeploy.validation.decisions import SIGNIFICANCE, Agreement, binomial_tail


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_the_tail_is_that_of_exact_fractions(successes: int, trials: int, twentieths: int) -> None:
    probability = Fraction(twentieths, 20)
    exact = sum(
        (
            math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k)
            for k in range(successes, trials + 1)
        ),
        Fraction(0),
    )
    assert binomial_tail(successes, trials, float(probability)) == pytest.approx(float(exact), rel=1e-9, abs=1e-15)


def test_the_tail_of_many_trials_ends_early() -> None:
    # 10^8 pixels, of which a tenth may differ: the normal approximation at +4.26 standard deviations.
    deviation = math.sqrt(1e8 * 0.1 * 0.9)
    tail = binomial_tail(round(1e7 + 4.26 * deviation), 10**8, 0.1)
    assert tail == pytest.approx(0.5 * math.erfc(4.26 / math.sqrt(2)), rel=0.02)


def answers(decisions: list[int], labels: list[int] | None) -> Answers:
    return Answers("x", np.array(decisions), None if labels is None else np.array(labels))


def test_images_are_paired() -> None:
    simulated, exported = answers([0, 1, 2, 3], [0, 1, 0, 0]), answers([0, 0, 0, 3], [0, 1, 0, 0])
    drop = compare_accuracy(simulated, exported, 0.0)
    assert drop == ExportDrop(images=4, lost=1, gained=1, allowed=0.0)
    assert drop is not None
    assert drop.fraction == 0
    assert drop.passed
    assert compare_decisions(simulated, exported, 0.9) == Agreement(4, 2, 0.9)


def test_without_labels_there_is_agreement_but_no_accuracy() -> None:
    simulated, exported = answers([0, 1], None), answers([0, 0], None)
    assert compare_accuracy(simulated, exported, 0.0) is None
    assert compare_decisions(simulated, exported, 0.9) == Agreement(2, 1, 0.9)
    assert simulated.accuracy is None


def test_every_pixel_of_a_map_is_a_decision() -> None:
    before = np.zeros((2, 4, 4), np.int32)
    after = before.copy()
    after[0, 0] = 1
    found = compare_decisions(Answers("s", before, None), Answers("e", after, None), 0.9)
    assert found == Agreement(32, 4, 0.9)


def test_an_output_without_classes_makes_no_decisions() -> None:
    empty = Answers("x", np.zeros(0, np.int32), None)
    assert compare_decisions(empty, empty, 0.9) is None


@pytest.mark.parametrize(
    ("lost", "gained", "passed"),
    [
        (0, 0, True),
        (9, 0, True),  # 2^-9 = 0.002
        (10, 0, False),  # 2^-10 < 0.001
        (0, 50, True),
        (110, 91, True),  # 0.19 % of 10,000 images, as measured of a 4-bit export
        (160, 91, False),
    ],
)
def test_a_loss_beyond_chance_fails(lost: int, gained: int, passed: bool) -> None:
    drop = ExportDrop(10_000, lost, gained, 0.0)
    assert drop.passed is passed
    assert (drop.probability >= SIGNIFICANCE) is passed


def test_a_loss_that_is_accepted_is_taken_out_first() -> None:
    assert not ExportDrop(1000, 20, 0, 0.0).passed
    assert ExportDrop(1000, 20, 0, 0.011).passed  # 11 are accepted, 9 are chance
    assert not ExportDrop(1000, 20, 0, 0.01).passed


@pytest.mark.parametrize(
    ("decisions", "differing", "passed"), [(10, 2, True), (10, 6, False), (1000, 100, True), (1000, 140, False)]
)
def test_few_decisions_say_little(decisions: int, differing: int, passed: bool) -> None:
    assert Agreement(decisions, differing, 0.9).passed is passed
