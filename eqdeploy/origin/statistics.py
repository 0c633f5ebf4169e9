"""Compare what calibration measured with the calibration images themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqdeploy.calibration.batch_norm import BatchMoments, BatchNormCalibration
from eqdeploy.calibration.images import BATCH_SIZE
from eqdeploy.calibration.measured import Range
from eqdeploy.calibration.ranges import VALUES_PER_BATCH
from eqdeploy.data import InputPreprocessing, LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation, Variation
from eqdeploy.origin.checks import Fault, OriginCheck
from eqdeploy.quant.initialize import subsample
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.copies import copy_sharing_weights
from eqdeploy.supernet.inputs import Inputs, call, concatenate, positional, to_inputs
from eqdeploy.supernet.statistics import read_statistics
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.visibility import ENCODED_DEPTH, SoftmaxViews, raised

#: Largest relative difference of numbers that the same float32 operations gave, perhaps with sums in another order.
_SAME = 1e-4


@dataclass(frozen=True, eq=False)
class CalibrationEvidence:
    """What a subnet was calibrated with, and what that measured.

    Attributes:
        images: Calibration images as stored.
        preprocessing: How images become inputs.
        augmentation: How they are varied for BatchNorm statistics.
        seed: Seed of these variations.
        batch_norm: Moments of every batch, from :func:`eqdeploy.calibration.batch_norm.calibrate_batch_norm`.
        samples: Values of tensors, from :func:`eqdeploy.calibration.ranges.sample_tensors`.
        own: The checkpoint's statistics, where the subnet keeps them; None where they were estimated.
        recorded: The ranges that an artifact records, each of which was held against the samples; None where they are
            to be those that the search finds on the samples.
    """

    images: LabelledImages
    preprocessing: InputPreprocessing
    augmentation: Augmentation
    seed: int
    batch_norm: BatchNormCalibration
    samples: Mapping[str, Tensor]
    own: Mapping[str, Tensor] | None = None
    recorded: Mapping[str, Range] | None = None


@torch.no_grad()
def compare_statistics(supernet: Supernet, subnet: SubnetConfig, evidence: CalibrationEvidence) -> OriginCheck:
    """Compare BatchNorm statistics with the moments of the calibration images under the subnet.

    The statistics must be the pooled moments of all batches, and the moments of two batches, one at the beginning and
    one in the middle, must be those that the subnet gives for these images, computed again from the stored pixels.

    Args:
        supernet: Calibrated; is copied.
        subnet: The subnet that was to be calibrated.
        evidence: What it was calibrated with.
    """
    if evidence.own is not None:
        return _compare_own(supernet, evidence.own)
    images, moments = evidence.images, evidence.batch_norm.moments
    faults: list[Fault] = []
    norms = {name: module for name, module in supernet.named_modules() if _has_statistics(module)}
    if evidence.batch_norm.images != len(images):
        faults.append(("images", f"{evidence.batch_norm.images} of {len(images)} images were used"))
    for name, norm in norms.items():
        text = _pooled_fault(norm, moments.get(name, ()))
        faults += [(name, text)] if text else []
    copied = copy_sharing_weights(supernet)
    copied.activate(subnet)
    parts = _parts(len(images))
    again = sorted({0, len(parts) // 2}) if norms else []
    for index, batch in _batches(evidence, parts, again):
        if index == 0:
            faults += _input_faults(evidence, parts[0])
        found = _moments(copied, batch)
        for name in norms:
            held = moments.get(name, ())
            uses = len(held) // max(len(parts), 1)
            if not _agree(found.get(name, ()), held[index * uses : (index + 1) * uses]):
                faults.append((name, f"batch {index} of the calibration images gives other moments"))
    holds = (
        f"{len(norms)} BatchNorm layers hold the statistics of {len(images)} calibration images; "
        f"{len(again)} of {len(parts)} batches computed again"
        if norms
        else "there are no BatchNorm statistics"
    )
    return OriginCheck.of("statistics", holds, list(dict(faults).items()), layers=len(norms), batches=len(parts))


def _compare_own(supernet: Supernet, own: Mapping[str, Tensor]) -> OriginCheck:
    """Compare BatchNorm statistics that were to stay with those of the checkpoint."""
    held = read_statistics(supernet.graph_module)
    faults = [(name, "is not what the checkpoint has") for name in own if not torch.equal(held[name], own[name])]
    return OriginCheck.of(
        "statistics", "BatchNorm holds the checkpoint's statistics", faults, layers=len(own), batches=0
    )


@torch.no_grad()
def compare_samples(supernet: Supernet, subnet: SubnetConfig, evidence: CalibrationEvidence) -> OriginCheck:
    """Compare the samples that ranges were calibrated on with the values of the subnet on the first calibration images.

    Args:
        supernet: Calibrated; is copied.
        subnet: The subnet that was to be measured.
        evidence: The images and the samples.
    """
    samples = evidence.samples
    if not samples:
        return OriginCheck.of("samples", "no range was calibrated", [])
    copied = copy_sharing_weights(supernet).eval()
    copied.activate(subnet)
    first = to_inputs(evidence.preprocessing.apply(evidence.images.images[:BATCH_SIZE]))
    views = SoftmaxViews(copied.graph_module, ENCODED_DEPTH)
    needed = {node.name: node for node in views.needed(samples)}
    recorder = _Recorder(copied.graph_module, frozenset(samples) | needed.keys())
    recorder.run(*positional(copied.graph_module.graph, first))
    kept = {node: recorder.values[name] for name, node in needed.items()}
    faults: list[Fault] = []
    for name, values in samples.items():
        seen = raised(recorder.values[name].float(), views.floor(name, kept))
        expected = subsample(seen.reshape(1, -1), VALUES_PER_BATCH)
        found = values[:, : expected.shape[1]]
        largest = float(expected.abs().max())
        if found.shape != expected.shape or not bool((found - expected).abs().max() <= _SAME * largest):
            faults.append((name, "the samples are not its values on the calibration images"))
    return OriginCheck.of("samples", f"{len(samples)} tensors were sampled on the calibration images", faults)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps chosen tensors."""

    def __init__(self, graph_module: fx.GraphModule, names: frozenset[str]) -> None:
        super().__init__(graph_module)
        self._names = names
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; its result may be overwritten later, so it is copied."""
        result = super().run_node(n)
        if n.name in self._names:
            self.values[n.name] = result.clone()
        return result


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "num_batches_tracked")


def _parts(count: int) -> list[slice]:
    """Images of each batch; one that is left over at the end joins the batch before it."""
    starts = list(range(0, count, BATCH_SIZE))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def _batches(
    evidence: CalibrationEvidence, parts: Sequence[slice], wanted: Sequence[int]
) -> Iterator[tuple[int, Inputs]]:
    """Some of the varied batches; the random numbers of those before them are drawn, too."""
    generator = torch.Generator().manual_seed(evidence.seed)
    for index, part in enumerate(parts):
        stored = evidence.images.images[part]
        pieces = [stored[start : start + BATCH_SIZE] for start in range(0, len(stored), BATCH_SIZE)]
        if not isinstance(evidence.preprocessing, Preprocessing):
            varied: list[Inputs] = [to_inputs(evidence.preprocessing.apply(piece)) for piece in pieces]
        else:
            drawn = [evidence.augmentation.draw(len(piece), generator) for piece in pieces]
            if index not in wanted:
                continue
            varied = [
                evidence.augmentation.vary(torch.from_numpy(piece.copy()), evidence.preprocessing, variation)
                for piece, variation in zip(pieces, drawn, strict=True)
            ]
        if index in wanted:
            yield index, concatenate(varied)


def _input_faults(evidence: CalibrationEvidence, part: slice) -> list[Fault]:
    """Without any variation, varied images must be the network's input."""
    images, preprocessing = evidence.images.images[part], evidence.preprocessing
    if not isinstance(preprocessing, Preprocessing) or images.shape[1:] != preprocessing.shape:
        return []  # no images, or larger ones, of which only variations make inputs
    plain = preprocessing.apply(images)
    varied = Augmentation().vary(torch.from_numpy(images.copy()), preprocessing, Variation()).numpy()
    return [] if (plain == varied).all() else [("input", "varied images are preprocessed in another way")]


def _moments(supernet: Supernet, batch: Inputs) -> dict[str, list[BatchMoments]]:
    """Moments of what reaches each BatchNorm while all of them normalize with the batch's own statistics."""
    found: dict[str, list[BatchMoments]] = {}
    norms = {name: module for name, module in supernet.named_modules() if _has_statistics(module)}
    supernet.eval()

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].movedim(1, 0).flatten(1).double()
            mean = rows.mean(dim=1)
            found.setdefault(name, []).append(
                BatchMoments(rows.shape[1], mean, (rows - mean[:, None]).square().mean(dim=1))
            )

        return hook

    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in norms.items()]
    for module in norms.values():
        module.training = True
    try:
        call(supernet, batch)
    finally:
        for handle in handles:
            handle.remove()
        supernet.eval()
    return found


def _agree(found: Sequence[BatchMoments], held: Sequence[BatchMoments]) -> bool:
    """Whether two computations of a batch's moments are one but for rounding."""
    if len(found) != len(held):
        return False
    for ours, theirs in zip(found, held, strict=True):
        deviation = ours.variance.sqrt() + ours.mean.abs()
        if ours.count != theirs.count:
            return False
        if bool(((ours.mean - theirs.mean).abs() > _SAME * deviation + 1e-12).any()):
            return False
        if bool(((ours.variance - theirs.variance).abs() > _SAME * deviation.square() + 1e-12).any()):
            return False
    return True


def _pooled_fault(norm: nn.Module, moments: Sequence[BatchMoments]) -> str | None:
    """Why statistics are not the pooled moments of all batches, None if they are."""
    if not moments:
        return "was not calibrated"
    counts = torch.tensor([float(part.count) for part in moments], dtype=torch.float64)
    means, variances = (torch.stack([getattr(part, key) for part in moments]) for key in ("mean", "variance"))
    total = float(counts.sum())
    mean = (counts[:, None] * means).sum(dim=0) / total
    spread = (counts[:, None] * (variances + (means - mean).square())).sum(dim=0) / max(total - 1, 1)
    # One variance for the whole layer is the mean of its channels'.
    for name, wanted in (("running_mean", mean), ("running_var", spread)):
        held = getattr(norm, name, None)
        if not isinstance(held, Tensor):
            continue
        wanted = wanted if held.ndim else wanted.mean()
        size = mean.abs() + spread.sqrt() if name == "running_mean" else spread + 1e-9 * mean.square()
        size = size if held.ndim else size.mean()
        if not bool(((held.double().cpu() - wanted).abs() <= 2.0**-20 * size).all()):
            return f"{name} is not that of the calibration images"
    return None
