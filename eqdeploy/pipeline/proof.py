"""Prove a written artifact on three levels: static checks, parity of integer codes, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.errors import AccuracyError, UsageError
from eqdeploy.progress import Progress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import Level
from eqdeploy.requests import Gates
from eqdeploy.validation.accuracy import (
    Accuracy,
    AccuracyReport,
    Classifier,
    check_gates,
    measure_accuracy,
    onnx_classifier,
)
from eqdeploy.validation.parity import ParityReport, ParityVerdict, check_parity
from eqdeploy.validation.static import check_static

MODEL_FILE = "model.onnx"
FLOAT, SIMULATED, EXPORTED = "float", "simulated", "exported"


@dataclass(frozen=True)
class Subject:
    """What is to be proved.

    Attributes:
        model: What the files should hold.
        directory: The artifact's folder.
        preprocessing: How images become inputs.
        power_of_two_scales: Whether the device wants powers of two.
    """

    model: QuantizedModel
    directory: Path
    preprocessing: Preprocessing
    power_of_two_scales: bool = False

    @property
    def model_path(self) -> Path:
        """The QDQ model that is run."""
        return self.directory / MODEL_FILE


@dataclass(frozen=True)
class Proof:
    """Outcome of the three levels, and what the runtime made of the operators."""

    static: Level
    parity: Level
    accuracy: Level
    operators: dict[str, Any]


def prove(
    subject: Subject,
    images: LabelledImages,
    others: Sequence[Accuracy | None],
    gates: Gates,
    *,
    parity_images: int,
    progress: Progress,
) -> Proof:
    """Run all three levels.

    Args:
        subject: The artifact.
        images: Held-out images, labelled if accuracy is to be measured.
        others: Accuracy of the float network and of the simulated subnet on the same images.
        gates: Limits on the accuracy.
        parity_images: Largest number of images on which codes are compared.
        progress: Listener.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load or run the model.
        DataError: If the images do not fit the network.
    """
    with progress.stage("checking numbers and structure"):
        static = check_static(subject.model, subject.model_path, power_of_two_scales=subject.power_of_two_scales)
    inputs = subject.preprocessing.apply(images.spread(parity_images).images)
    parity = check_parity(subject.model, subject.model_path, inputs, progress=progress)
    exported = measure(EXPORTED, onnx_classifier(subject.model_path), images, subject.preprocessing, progress)
    return Proof(
        static=Level.of(static.passed, static.summary, static.to_json()),
        parity=Level.of(parity.verdict is not ParityVerdict.FAILED, parity.summary, _without_operators(parity)),
        accuracy=judge_accuracy((*others, exported), gates),
        operators={
            str(level.level): level.operators.to_json() for level in parity.levels if level.operators is not None
        },
    )


def measure(
    name: str, classifier: Classifier, images: LabelledImages, preprocessing: Preprocessing, progress: Progress
) -> Accuracy | None:
    """Top-1 accuracy of one network on stored images, None if they have no labels.

    Args:
        name: ``float``, ``simulated`` or ``exported``.
        classifier: Takes preprocessed images.
        images: Images as stored; they are preprocessed batch by batch.
        preprocessing: What the network reads.
        progress: Listener.
    """
    if not images.is_labelled:
        return None
    return measure_accuracy(
        name,
        lambda batch: classifier(preprocessing.apply(batch)),
        images.images,
        images.labels,
        progress=progress,
    )


def missed_gate(rows: Sequence[Accuracy], gates: Gates) -> AccuracyError | None:
    """The gate that the last network misses; the one called ``float`` is what a drop is measured against.

    Raises:
        UsageError: If a drop is limited but the float network was not measured.
    """
    baseline = next((row for row in rows if row.name == FLOAT), None)
    if baseline is None and gates.max_drop is not None:
        raise UsageError("--max-drop needs the float accuracy", hint="name the supernet with --supernet")
    report = AccuracyReport(baseline=baseline or rows[-1], exported=rows[-1])
    try:
        check_gates(report, min_accuracy=gates.min_accuracy, max_drop=gates.max_drop)
    except AccuracyError as error:
        return error
    return None


def judge_accuracy(rows: Sequence[Accuracy | None], gates: Gates) -> Level:
    """Compare accuracies with the gates; without labels there is no accuracy, and no gate can be met.

    Args:
        rows: What was measured, the exported model last; None where there were no labels.
        gates: Limits.
    """
    measured = [row for row in rows if row is not None]
    if not measured:
        reason = "the images have no labels"
        if gates.min_accuracy is None and gates.max_drop is None:
            return Level.not_run(reason)
        return Level.of(False, f"{reason}, so the gates cannot be checked", {})
    failure = missed_gate(measured, gates)
    text = ", ".join(f"{row.name} {row.fraction:.2%}" for row in measured)
    return Level.of(
        failure is None,
        f"{text} of {measured[-1].images} images" if failure is None else str(failure),
        {
            "rows": [{"name": row.name, **row.to_json()} for row in measured],
            "min_accuracy": gates.min_accuracy,
            "max_drop": gates.max_drop,
        },
    )


def _without_operators(parity: ParityReport) -> dict[str, Any]:
    """The parity report without the lists of operators, which have their own place in the report."""
    document = parity.to_json()
    for level in document["levels"].values():
        level.pop("operators")
    return document
