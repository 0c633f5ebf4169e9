"""Accuracy of any network, and the gates on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eqdeploy.errors import AccuracyError, DataError, RuntimeRefusedError
from eqdeploy.exporters.onnx_qdq import OnnxQdqExporter
from eqdeploy.testing import sample_model
from eqdeploy.validation.accuracy import (
    Accuracy,
    AccuracyReport,
    Classifier,
    check_gates,
    measure_accuracy,
    onnx_classifier,
    reference_classifier,
    torch_classifier,
)


def images(count: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.random.default_rng(0).normal(0, 1.5, (count, 3, 8, 8)).astype(np.float32)
    return values


def report(baseline: int, exported: int, total: int = 200) -> AccuracyReport:
    return AccuracyReport(Accuracy("float", baseline, total), Accuracy("exported", exported, total))


def test_reference_and_exported_model_agree_side_by_side(tmp_path: Path) -> None:
    model = sample_model()
    OnnxQdqExporter().export(model, tmp_path, {})
    batch = images(150)
    labels = reference_classifier(model)(batch).argmax(axis=1)
    labels[:15] = (labels[:15] + 1) % 5
    classifiers: dict[str, Classifier] = {
        "float": lambda part: np.eye(5)[np.zeros(len(part), np.int64)],
        "reference": reference_classifier(model),
        "exported": onnx_classifier(tmp_path / "model.onnx"),
    }
    rows = [measure_accuracy(name, classifier, batch, labels) for name, classifier in classifiers.items()]
    found = AccuracyReport(rows[0], rows[2], (rows[1],))
    assert found.exported == Accuracy("exported", 135, 150)
    assert found.others == (Accuracy("reference", 135, 150),)
    assert found.baseline.correct == int((labels == 0).sum())
    assert found.to_json()["networks"]["exported"] == {"correct": 135, "images": 150, "accuracy": 0.9}
    assert "exported 90.00%" in found.summary


def test_a_torch_module_is_evaluated_and_left_in_its_mode() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.99), torch.nn.Linear(192, 4))
    module.train()
    classify = torch_classifier(module)
    first, second = classify(images(8)), classify(images(8))
    assert np.array_equal(first, second)
    assert module.training
    labels = first.argmax(axis=1)
    assert measure_accuracy("torch", classify, images(8), labels).fraction == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((8, 3)), np.zeros(7, np.int64), "do not belong together"),
        (np.zeros((7, 3)), np.zeros(8, np.int64), r"returns \(7, 3\)"),
        (np.zeros((8, 3)), np.full(8, 3), "labels up to 3"),
        (np.zeros(8), np.zeros(8, np.int64), r"returns \(8,\)"),
        (np.full((8, 3), np.nan), np.zeros(8, np.int64), "not finite"),
    ],
)
def test_data_that_do_not_fit_are_refused(logits: NDArray[np.float64], labels: NDArray[np.int64], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure_accuracy("network", lambda _: logits, images(8), labels)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError):
        measure_accuracy("network", lambda _: np.zeros((0, 3)), images(0), np.zeros(0, np.int64))


def test_a_missing_file_is_an_error_of_the_runtime(tmp_path: Path) -> None:
    with pytest.raises(RuntimeRefusedError) as failure:
        onnx_classifier(tmp_path / "nothing.onnx")
    assert "\n" not in str(failure.value)
    assert "nothing.onnx" in str(failure.value)


def test_gates_that_are_met_pass() -> None:
    check_gates(report(190, 188))
    check_gates(report(190, 188), min_accuracy=0.94, max_drop=0.01)
    check_gates(report(180, 190), max_drop=0.0)


@pytest.mark.parametrize("total", [3, 7, 100, 360, 997])
def test_a_drop_of_exactly_the_limit_passes(total: int) -> None:
    check_gates(report(total, total - 1, total), max_drop=1 / total)
    with pytest.raises(AccuracyError):
        check_gates(report(total, total - 2, total), max_drop=1 / total)


def test_gates_that_are_missed_name_both_numbers() -> None:
    with pytest.raises(AccuracyError, match=r"exported: .*94\.00%.*95\.00%"):
        check_gates(report(190, 188), min_accuracy=0.95)
    with pytest.raises(AccuracyError, match=r"from 95\.00% to 94\.00%.*at most 0\.50%"):
        check_gates(report(190, 188), max_drop=0.005)
