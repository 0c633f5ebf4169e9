"""Parity: integer codes of ONNX Runtime against the integer reference, at every level of optimization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import DataError, ParityError
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation.decisions import decisions
from eqdeploy.validation.differences import Examiner, Kind, TensorDifferences
from eqdeploy.validation.operators import OperatorSummary, summarize
from eqdeploy.validation.parity_report import MINIMUM_AGREEMENT, LevelParity, ParityReport, ParityVerdict
from eqdeploy.validation.qdq_file import ActivationChain, QdqFile
from eqdeploy.validation.reference.integer import IntegerReference, ReferenceResult, check_images
from eqdeploy.validation.runtime import Exposure, Level, ObservedModel

__all__ = ["LevelParity", "ParityReport", "ParityVerdict", "check_parity", "decisions"]

#: Bytes of codes that one batch may hold; batches are made smaller for larger networks.
BATCH_BYTES = 64 << 20

#: Levels at which ONNX Runtime fuses operators into integer kernels.
FUSING_LEVELS = (Level.EXTENDED, Level.ALL)

#: Images of one batch at most.
BATCH_IMAGES = 64

#: Images that are also run one at a time, as a device runs them.
SINGLE_IMAGES = 2

#: Is shown the images of a batch and what the reference computes for them.
Watch = Callable[[NDArray[Any], ReferenceResult], None]


def check_parity(
    model: QuantizedModel,
    onnx_path: Path,
    images: NDArray[Any],
    *,
    noun: str = "images",
    levels: tuple[Level, ...] = tuple(Level),
    threads: int = 1,
    min_agreement: float = MINIMUM_AGREEMENT,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare what ONNX Runtime computes with what the integer reference computes, code by code.

    Args:
        model: The network that was exported.
        onnx_path: The QDQ model that was written for it.
        images: Shape (N, …) of the network's input, or (N,) records with a field for each input; at least one.
        noun: What one calls them.
        levels: Levels of optimization.
        threads: Threads of ONNX Runtime inside an operator.
        min_agreement: Smallest fraction of decisions that must be the reference's at every level.
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
    floats = {level: _float_operations(reference, operators.get(level)) for level in levels}
    tallies = {level: _Tally(floats[level], min_agreement) for level in levels}
    alone = {level: _Tally(floats[level], min_agreement) for level in levels}
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
    chosen = images[:: max(1, len(images) // SINGLE_IMAGES)][:SINGLE_IMAGES]
    with listener.stage("comparing integer codes of single images", total=len(chosen)) as advance:
        single = [chosen[index : index + 1] for index in range(len(chosen))]
        parts = [reference.run(image) for image in single]
        for image, part in zip(single, parts, strict=True):
            for level in levels:
                alone[level].add(observed[level], examiner, image, part)
            advance(1)
    return ParityReport(
        images=len(images),
        tensors=len(reference.graph.encodings),
        levels=tuple(tallies[level].result(level, observed[level], operators.get(level)) for level in levels),
        single_images=len(chosen),
        singles=tuple(alone[level].result(level, observed[level], operators.get(level)) for level in levels),
        batch_dependent=_batch_dependent(reference.run(chosen), parts),
        noun=noun,
    )


def _batch_dependent(together: ReferenceResult, alone: list[ReferenceResult]) -> tuple[str, ...]:
    """Tensors, and outputs without encoding, in which an image gets other numbers alone than beside others."""
    found: list[str] = []
    pairs: list[tuple[Mapping[str, NDArray[Any]], list[Mapping[str, NDArray[Any]]]]] = [
        (together.codes, [part.codes for part in alone]),
        (
            {name: output for name, output in together.outputs.items() if name not in together.codes},
            [dict(part.outputs) for part in alone],
        ),
    ]
    for whole, parts in pairs:
        for name, values in whole.items():
            rows = [part[name] for part in parts]
            if len(values) != len(parts) or any(len(row) != 1 for row in rows):
                continue  # no image matters to it, or its first axis is not the batch
            joined = np.concatenate(rows)
            # Float32 outputs are computed in float64: the order of additions may show in the last digit.
            same = np.array_equal(values, joined) if name in together.codes else np.allclose(values, joined, rtol=1e-5)
            found += [] if same else [name]
    return tuple(found)


@dataclass
class _Tally:
    """What was found at one level so far."""

    float_operations: frozenset[str]
    min_agreement: float
    tensors: dict[str, TensorDifferences] = field(default_factory=dict)
    decisions: int = 0
    decisions_differing: int = 0
    output_difference: float = 0.0
    outputs_explained: bool = True
    saturated: list[str] = field(default_factory=list)

    def add(self, observed: ObservedModel, examiner: Examiner, images: NDArray[Any], expected: ReferenceResult) -> None:
        """Compare one batch."""
        seen = observed.run(images)
        for name, differences in examiner.compare(images, expected.codes, seen.codes, self.float_operations).items():
            before = self.tensors.get(name)
            self.tensors[name] = differences if before is None else before.plus(differences)
            if Kind.RUNTIME_BIAS_SATURATION in differences.kinds:
                self.saturated += filter(None, [examiner.saturated_layer(name)])
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
            saturated=tuple(dict.fromkeys(self.saturated)),
            min_agreement=self.min_agreement,
        )


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


def _batch_size(reference: IntegerReference, images: NDArray[Any]) -> int:
    """Number of images whose codes fit into a batch's share of memory."""
    codes = reference.run(images[:1]).codes
    return max(1, min(BATCH_IMAGES, BATCH_BYTES // max(1, sum(array.size for array in codes.values()))))
