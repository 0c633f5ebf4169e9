"""Parity: integer codes of ONNX Runtime against the integer reference, at every level of optimization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import DataError, ParityError
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation.differences import Examiner, Kind, TensorDifferences
from eqdeploy.validation.operators import OperatorSummary, summarize
from eqdeploy.validation.qdq_file import ActivationChain, QdqFile
from eqdeploy.validation.reference.integer import IntegerReference, ReferenceResult, check_images
from eqdeploy.validation.runtime import Exposure, Level, ObservedModel

#: Bytes of codes that one batch may hold; batches are made smaller for larger networks.
BATCH_BYTES = 64 << 20

#: Levels at which ONNX Runtime fuses operators into integer kernels.
FUSING_LEVELS = (Level.EXTENDED, Level.ALL)

#: Images of one batch at most.
BATCH_IMAGES = 64

#: Is shown the images of a batch and what the reference computes for them.
Watch = Callable[[NDArray[np.float32], ReferenceResult], None]


class ParityVerdict(StrEnum):
    """What a comparison adds up to."""

    #: Every code is the same at every level.
    IDENTICAL = "identical"
    #: Codes differ, and every difference has a reason that lies in the runtime's arithmetic.
    EXPLAINED = "explained"
    #: A difference has no explanation.
    FAILED = "failed"


@dataclass(frozen=True)
class LevelParity:
    """The comparison at one level of optimization.

    Attributes:
        level: The level.
        tensors: Differences by tensor, in order of execution.
        exposure: How the integers were made visible.
        decisions: Number of top-1 decisions: one per image, or one per pixel where the network returns maps.
        decisions_differing: Decisions that differ from the reference's.
        output_difference: Largest absolute difference of an output.
        outputs_explained: Whether every output follows from the runtime's own codes.
        operators: What was fused and what stayed float; None at levels that fuse nothing.
    """

    level: Level
    tensors: dict[str, TensorDifferences]
    exposure: Exposure
    decisions: int
    decisions_differing: int
    output_difference: float
    outputs_explained: bool
    operators: OperatorSummary | None

    @property
    def total(self) -> TensorDifferences:
        """Differences of all tensors together."""
        total = TensorDifferences(0, 0, {}, 0)
        for tensor in self.tensors.values():
            total = total.plus(tensor)
        return total

    @property
    def first_differing(self) -> str | None:
        """The first tensor in order of execution that differs, None if none does."""
        return next((name for name, tensor in self.tensors.items() if tensor.differing), None)

    @property
    def top1_agreement(self) -> float:
        """Fraction of decisions that are the reference's."""
        return 1.0 - self.decisions_differing / self.decisions if self.decisions else 1.0

    @property
    def verdict(self) -> ParityVerdict:
        """Failed if anything is unexplained, identical if every code is the same."""
        total = self.total
        if total.kinds.get(Kind.UNEXPLAINED) or not self.outputs_explained:
            return ParityVerdict.FAILED
        return ParityVerdict.EXPLAINED if total.differing else ParityVerdict.IDENTICAL

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        total = self.total
        return {
            "verdict": str(self.verdict),
            "codes": total.codes,
            "differing": total.differing,
            "kinds": _kinds(total),
            "max_lsb": total.max_lsb,
            "first_differing_tensor": self.first_differing,
            "top1_agreement": self.top1_agreement,
            "output_max_difference": self.output_difference,
            "outputs_explained": self.outputs_explained,
            "exposure": str(self.exposure),
            "differing_tensors": {
                name: {
                    "codes": tensor.codes,
                    "differing": tensor.differing,
                    "kinds": _kinds(tensor),
                    "max_lsb": tensor.max_lsb,
                }
                for name, tensor in self.tensors.items()
                if tensor.differing
            },
            "operators": None if self.operators is None else self.operators.to_json(),
        }


@dataclass(frozen=True)
class ParityReport:
    """The comparison at all levels.

    Attributes:
        images: Number of images.
        tensors: Number of encoded tensors.
        levels: One entry per level, from none to all optimizations.
    """

    images: int
    tensors: int
    levels: tuple[LevelParity, ...]

    @property
    def verdict(self) -> ParityVerdict:
        """The worst verdict of all levels."""
        verdicts = {level.verdict for level in self.levels}
        order = (ParityVerdict.FAILED, ParityVerdict.EXPLAINED, ParityVerdict.IDENTICAL)
        return next((verdict for verdict in order if verdict in verdicts), ParityVerdict.FAILED)

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        codes = sum(level.total.codes for level in self.levels)
        differing = sum(level.total.differing for level in self.levels)
        basis = f"{codes:,} codes of {self.tensors} tensors, {self.images} images, {len(self.levels)} levels"
        if self.verdict is ParityVerdict.IDENTICAL:
            return f"no differing code in {basis}"
        if self.verdict is ParityVerdict.EXPLAINED:
            return f"{differing:,} differing codes, all explained, in {basis}"
        level = next(level for level in self.levels if level.verdict is ParityVerdict.FAILED)
        unexplained = {name: tensor.kinds.get(Kind.UNEXPLAINED, 0) for name, tensor in level.tensors.items()}
        first = next((name for name, count in unexplained.items() if count), None)
        if first is None:
            return f"at level {level.level} the outputs do not follow from the codes before them"
        return (
            f"{sum(unexplained.values()):,} unexplained differing codes at level {level.level}, "
            f"the first in tensor {first}"
        )

    def level(self, level: Level) -> LevelParity:
        """The comparison at one level."""
        return next(entry for entry in self.levels if entry.level is level)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "verdict": str(self.verdict),
            "summary": self.summary,
            "images": self.images,
            "tensors": self.tensors,
            "levels": {str(level.level): level.to_json() for level in self.levels},
        }


def check_parity(
    model: QuantizedModel,
    onnx_path: Path,
    images: NDArray[np.float32],
    *,
    levels: tuple[Level, ...] = tuple(Level),
    threads: int = 1,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare what ONNX Runtime computes with what the integer reference computes, code by code.

    Args:
        model: The network that was exported.
        onnx_path: The QDQ model that was written for it.
        images: float32, shape (N, …) of the network's input, at least one.
        levels: Levels of optimization.
        threads: Threads of ONNX Runtime inside an operator.
        watch: Called with the images and the reference's result of every batch.
        progress: Listener.

    Raises:
        DataError: If the images do not fit the network.
        ValidationError: If the file is damaged.
        ParityError: If the file does not quantize a tensor that the model quantizes.
        RuntimeRefusedError: If ONNX Runtime does not load or run the file.
        UnsupportedOperationError: If the reference cannot evaluate an operation.
    """
    listener = progress or SilentProgress()
    reference = IntegerReference(model)
    check_images(reference.graph, images)
    if len(images) == 0:
        raise DataError("at least one image is needed to compare codes")
    file = QdqFile.load(onnx_path)
    chains = _chains(file, model, onnx_path)
    with listener.stage("loading the model in ONNX Runtime", total=len(levels)) as advance:
        observed: dict[Level, ObservedModel] = {}
        for level in levels:
            observed[level] = ObservedModel(file, chains, level, threads=threads)
            advance(1)
    examiner = Examiner(reference)
    operators = {level: summarize(observed[level].graph, reference.graph) for level in levels if level in FUSING_LEVELS}
    tallies = {level: _Tally(_float_operations(reference, operators.get(level))) for level in levels}
    size = _batch_size(reference, images)
    with listener.stage("comparing integer codes", total=len(images)) as advance:
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            expected = reference.run(batch)
            if watch is not None:
                watch(batch, expected)
            for level in levels:
                tallies[level].add(observed[level], examiner, batch, expected)
            advance(len(batch))
    return ParityReport(
        images=len(images),
        tensors=len(reference.graph.encodings),
        levels=tuple(tallies[level].result(level, observed[level], operators.get(level)) for level in levels),
    )


@dataclass
class _Tally:
    """What was found at one level so far."""

    float_operations: frozenset[str]
    tensors: dict[str, TensorDifferences] = field(default_factory=dict)
    decisions: int = 0
    decisions_differing: int = 0
    output_difference: float = 0.0
    outputs_explained: bool = True

    def add(
        self, observed: ObservedModel, examiner: Examiner, images: NDArray[np.float32], expected: ReferenceResult
    ) -> None:
        """Compare one batch."""
        seen = observed.run(images)
        for name, differences in examiner.compare(images, expected.codes, seen.codes, self.float_operations).items():
            before = self.tensors.get(name)
            self.tensors[name] = differences if before is None else before.plus(differences)
        for name, wanted in expected.outputs.items():
            output = seen.plain_outputs.get(name)
            if output is None or output.shape != wanted.shape:
                raise ParityError(f"the exported model does not return an array of shape {wanted.shape}", where=name)
            self._add_decisions(wanted, output)
            # Where observing changed the fusion, the codes that were seen belong to other outputs.
            own = seen.outputs[name] if observed.exposure is Exposure.DISTURBING else output
            explained = examiner.output_is_explained(images, name, seen.codes, own)
            self.outputs_explained = self.outputs_explained and explained

    def _add_decisions(self, wanted: NDArray[np.float32], output: NDArray[Any]) -> None:
        """Compare one output of the network."""
        self.output_difference = max(self.output_difference, float(np.abs(output - wanted).max(initial=0.0)))
        ours, theirs = decisions(wanted), decisions(output)
        self.decisions += ours.size
        self.decisions_differing += int((ours != theirs).sum())

    def result(self, level: Level, observed: ObservedModel, operators: OperatorSummary | None) -> LevelParity:
        """Close the books."""
        return LevelParity(
            level=level,
            tensors=self.tensors,
            exposure=observed.exposure,
            decisions=self.decisions,
            decisions_differing=self.decisions_differing,
            output_difference=self.output_difference,
            outputs_explained=self.outputs_explained,
            operators=operators,
        )


def decisions(output: NDArray[Any]) -> NDArray[np.int64]:
    """Top-1 decisions of an output: the class of each image, or of each pixel of a map.

    Args:
        output: Shape (N, classes) or (N, classes, …).

    Returns:
        int64, shape (N,) or (N, …). An output without an axis of classes makes no decisions.
    """
    if output.ndim < 2 or output.shape[1] < 2:
        return np.zeros(0, np.int64)
    return np.asarray(output.argmax(axis=1), np.int64)


def _chains(file: QdqFile, model: QuantizedModel, path: Path) -> dict[str, ActivationChain]:
    """The one chain of every encoded tensor."""
    found = file.chains(model)
    chains: dict[str, ActivationChain] = {}
    for name in model.activations:
        if len(found.get(name, ())) != 1:
            count = len(found.get(name, ()))
            raise ParityError(f"the file quantizes this tensor {count} times instead of once", where=f"{path}: {name}")
        chains[name] = found[name][0]
    return chains


def _float_operations(reference: IntegerReference, operators: OperatorSummary | None) -> frozenset[str]:
    """Names of the operations that a level computes in float; all of them at levels that fuse nothing."""
    everything = frozenset(operation.name for operation in reference.graph.operations)
    found = frozenset() if operators is None else frozenset(item.name for item in operators.float_operators)
    # A node that the runtime made up may belong to any operation.
    return found if operators is not None and found <= everything else everything


def _batch_size(reference: IntegerReference, images: NDArray[np.float32]) -> int:
    """Number of images whose codes fit into a batch's share of memory."""
    codes = reference.run(images[:1]).codes
    return max(1, min(BATCH_IMAGES, BATCH_BYTES // max(1, sum(array.size for array in codes.values()))))


def _kinds(differences: TensorDifferences) -> dict[str, int]:
    return {str(kind): count for kind, count in differences.kinds.items()}
