"""Every gate: what passes, what fails, and that it needs no more than it needs."""

from __future__ import annotations

import numpy as np
import pytest

from eqdeploy.errors import UsageError
from eqdeploy.float_share import FloatShare
from eqdeploy.pipeline.judging import judge_accuracy, judge_agreement, judge_distance, judge_float_share
from eqdeploy.report import LevelStatus
from eqdeploy.requests import DEFAULT_GATES, Gates
from eqdeploy.validation.agreement import Answers

LABELS = np.arange(100) % 10


def answers(name: str, wrong: int, *, labelled: bool = True) -> Answers:
    """An answer of which the first images are wrong."""
    decisions = LABELS.copy()
    decisions[:wrong] = (decisions[:wrong] + 1) % 10
    return Answers(name, decisions, LABELS if labelled else None)


def test_an_exported_model_that_loses_what_the_simulated_subnet_knows_fails() -> None:
    level = judge_accuracy(answers("float", 0), answers("simulated", 1), answers("exported", 100), DEFAULT_GATES)
    assert level.status is LevelStatus.FAILED
    assert "loses 99 images of 100" in level.summary
    assert "simulated 99.00%, exported 0.00%" in level.summary
    allowed = Gates(max_export_drop=1.0)
    assert judge_accuracy(None, answers("simulated", 1), answers("exported", 100), allowed).status is LevelStatus.PASSED


def test_accuracy_that_is_lost_by_chance_passes() -> None:
    level = judge_accuracy(None, answers("simulated", 0), answers("exported", 5), DEFAULT_GATES)
    assert level.status is LevelStatus.PASSED
    assert level.details["against_simulated"]["lost"] == 5  # type: ignore[index, call-overload]


def test_gates_of_the_user_come_first() -> None:
    gates = Gates(min_accuracy=0.99).or_else(DEFAULT_GATES)
    level = judge_accuracy(None, answers("simulated", 5), answers("exported", 5), gates)
    assert level.status is LevelStatus.FAILED
    assert "below the required 99.00%" in level.summary
    with pytest.raises(UsageError, match="--max-drop"):
        judge_accuracy(None, None, answers("exported", 5), Gates(max_drop=0.1))


def test_without_labels_accuracy_is_not_measured_but_decisions_are_judged() -> None:
    simulated, exported = answers("simulated", 0, labelled=False), answers("exported", 40, labelled=False)
    level = judge_accuracy(None, simulated, exported, DEFAULT_GATES)
    assert (level.status, level.summary) == (LevelStatus.NOT_RUN, "accuracy not measured: the images have no labels")
    assert judge_accuracy(None, simulated, exported, Gates(min_accuracy=0.5)).status is LevelStatus.FAILED
    level = judge_agreement(simulated, exported, DEFAULT_GATES)
    assert level.status is LevelStatus.FAILED
    assert "only 60.00% of 100 decisions" in level.summary
    assert judge_agreement(simulated, exported, Gates(min_agreement=0.5)).status is LevelStatus.PASSED


def test_what_needs_the_supernet_is_not_run_without_it() -> None:
    for level in (
        judge_agreement(None, answers("exported", 0), DEFAULT_GATES),
        judge_distance(None, DEFAULT_GATES),
        judge_float_share(None, DEFAULT_GATES),
    ):
        assert level.status is LevelStatus.NOT_RUN
        assert "--supernet" in level.summary


def test_an_output_without_classes_is_said_to_make_no_decisions() -> None:
    empty = Answers("x", np.zeros(0, np.int32), None)
    level = judge_agreement(empty, empty, DEFAULT_GATES)
    assert level.status is LevelStatus.NOT_RUN
    assert "no decisions" in level.summary


@pytest.mark.parametrize(("limit", "status"), [(None, "passed"), (0.6, "passed"), (0.5, "failed")])
def test_what_stays_float_is_judged_by_the_larger_share(limit: float | None, status: str) -> None:
    share = FloatShare(100, 10, 100, 60, ("encoder",))
    level = judge_float_share(share, Gates(max_float_share=limit))
    assert str(level.status) == status
    assert "10.0% of the parameters and 60.0% of the operations stay float (encoder)" in level.summary
