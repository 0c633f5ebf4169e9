"""Why there is no accuracy: each kind of labels has its own reason, which the report gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eqdeploy.data.inputs import ValuePreprocessing
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.pipeline.answers import EXPORTED, answer
from eqdeploy.pipeline.judging import judge_accuracy
from eqdeploy.progress import SilentProgress
from eqdeploy.report import LevelStatus
from eqdeploy.requests import DEFAULT_GATES

INPUTS = np.eye(6, 4, dtype=np.float32)


def three_scores(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    return batch[:, :3]


@pytest.mark.parametrize(
    ("labels", "classes", "reason"),
    [
        (np.full(6, -1), (), "the images have no labels"),
        (np.zeros((6, 2), np.float32), (), "the labels are numbers, not classes"),
        (np.zeros((6, 5, 5), np.int64), ("a", "b"), "the labels are no classes of the network's output"),
    ],
)
def test_the_reason_is_that_of_the_labels(labels: NDArray[Any], classes: tuple[str, ...], reason: str) -> None:
    data = LabelledImages(INPUTS, labels, classes, "set")
    found = answer(EXPORTED, three_scores, data, ValuePreprocessing((4,)), SilentProgress())
    level = judge_accuracy(None, None, found, DEFAULT_GATES)
    assert (level.status, level.summary) == (LevelStatus.NOT_RUN, f"accuracy not measured: {reason}")
