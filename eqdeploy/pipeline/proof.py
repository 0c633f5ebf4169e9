"""Prove a written artifact: static checks, parity of integer codes, and what the supernet is the yardstick of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data import InputPreprocessing, LabelledImages
from eqdeploy.data.inputs import noun_of
from eqdeploy.float_share import FloatShare
from eqdeploy.pipeline.answers import EXPORTED, answer
from eqdeploy.pipeline.baseline import FloatNetwork
from eqdeploy.pipeline.judging import judge_accuracy, judge_agreement, judge_distance, judge_float_share
from eqdeploy.progress import Progress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import Level
from eqdeploy.requests import DEFAULT_GATES, Gates
from eqdeploy.validation.accuracy import onnx_classifier
from eqdeploy.validation.agreement import Answers
from eqdeploy.validation.distance import DistanceMeter
from eqdeploy.validation.parity import ParityReport, ParityVerdict, check_parity
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.static import check_static

MODEL_FILE = "model.onnx"

#: Images that are compared at another size, too, where the size is free.
_LARGER_IMAGES = 16

_NOT_AT_HAND = Level.not_run("origin not proved: the supernet and the images of the export are not at hand")


@dataclass(frozen=True)
class Subject:
    """What is to be proved.

    Attributes:
        model: What the files should hold.
        directory: The artifact's folder.
        preprocessing: How what is stored becomes inputs.
        power_of_two_scales: Whether the device wants powers of two.
    """

    model: QuantizedModel
    directory: Path
    preprocessing: InputPreprocessing
    power_of_two_scales: bool = False

    @property
    def model_path(self) -> Path:
        """The QDQ model that is run."""
        return self.directory / MODEL_FILE


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What an exported model is held against, as far as the supernet is at hand.

    Attributes:
        network: The float network.
        float_answers: Its decisions on the held-out images.
        simulated: Decisions of the simulated subnet on the held-out images.
        share: What stays float.
        origin: Whether the numbers are those of the supernet.
    """

    network: FloatNetwork | None = None
    float_answers: Answers | None = None
    simulated: Answers | None = None
    share: FloatShare | None = None
    origin: Level = _NOT_AT_HAND


@dataclass(frozen=True)
class Proof:
    """Outcome of all levels, and what the runtime made of the operators."""

    static: Level
    origin: Level
    parity: Level
    distance: Level
    agreement: Level
    accuracy: Level
    float_share: Level
    operators: dict[str, Any]

    @property
    def levels(self) -> dict[str, Level]:
        """The levels by name, as the report has them."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Level)}


def prove(
    subject: Subject,
    images: LabelledImages,
    yardstick: Yardstick,
    gates: Gates,
    *,
    parity_images: int,
    progress: Progress,
) -> Proof:
    """Run all levels.

    Args:
        subject: The artifact.
        images: Held-out images, labelled if accuracy is to be measured.
        yardstick: What it is held against.
        gates: Limits; those that are not set are the defaults.
        parity_images: Largest number of images on which codes and the distance from float are compared.
        progress: Listener.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load or run the model.
        DataError: If the images do not fit the network.
    """
    gates = gates.or_else(DEFAULT_GATES)
    with progress.stage("checking numbers and structure"):
        static = check_static(subject.model, subject.model_path, power_of_two_scales=subject.power_of_two_scales)
    inputs = subject.preprocessing.apply(images.spread(parity_images).images)
    network = yardstick.network
    meter = None if network is None else DistanceMeter(Graph.of(subject.model), network.tensors)
    watch = None if meter is None else meter.add
    parity = check_parity(
        subject.model,
        subject.model_path,
        inputs,
        noun=noun_of(subject.preprocessing),
        min_agreement=gates.min_agreement or 0.0,
        watch=watch,
        progress=progress,
    )
    other_size = _other_size(subject, inputs, noun_of(subject.preprocessing), progress)
    exported = answer(EXPORTED, onnx_classifier(subject.model_path), images, subject.preprocessing, progress)
    return Proof(
        static=Level.of(static.passed, static.summary, static.to_json()),
        origin=yardstick.origin,
        parity=_parity_level(parity, other_size),
        distance=judge_distance(meter, gates),
        agreement=judge_agreement(yardstick.simulated, exported, gates),
        accuracy=judge_accuracy(yardstick.float_answers, yardstick.simulated, exported, gates),
        float_share=judge_float_share(yardstick.share, gates),
        operators={
            str(level.level): level.operators.to_json() for level in parity.levels if level.operators is not None
        },
    )


def _other_size(subject: Subject, inputs: NDArray[Any], noun: str, progress: Progress) -> ParityReport | None:
    """Parity at twice the height and width, on images that are mirrored at their ends; None where the size is fixed."""
    if inputs.ndim != 4 or not Graph.of(subject.model).has_free_size:
        return None
    _, _, height, width = inputs.shape
    larger = np.pad(inputs[:_LARGER_IMAGES], ((0, 0), (0, 0), (0, height), (0, width)), mode="symmetric")
    return check_parity(subject.model, subject.model_path, larger, noun=f"{noun} of twice the size", progress=progress)


def _parity_level(parity: ParityReport, other_size: ParityReport | None) -> Level:
    """The level of the report; where height and width are free, at both sizes."""
    reports = [parity] if other_size is None else [parity, other_size]
    details = _without_operators(parity)
    if other_size is not None:
        details["other_size"] = _without_operators(other_size)
    passed = all(report.verdict is not ParityVerdict.FAILED for report in reports)
    return Level.of(passed, "; ".join(report.summary for report in reports), details)


def _without_operators(parity: ParityReport) -> dict[str, Any]:
    """The parity report without the lists of operators, which have their own place in the report."""
    document = parity.to_json()
    for level in document["levels"].values():
        level.pop("operators")
    return document
