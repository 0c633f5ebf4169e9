"""Hold trained, calibrated and broken networks against the default floors of the distance from float.

    python benchmarks/distance_floors.py --cifar10 FOLDER

A trained network must pass at every width, a broken one should not. What is broken, is so in one or in every layer.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table, write_results

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline.baseline import FloatNetwork, float_network
from eqdeploy.pipeline.sources import load_image_sets, load_supernet
from eqdeploy.pipeline.subnets import activate_calibrated, freeze_active
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.accuracy import decide
from eqdeploy.validation.decisions import decisions
from eqdeploy.validation.distance import DistanceMeter, DistanceReport
from eqdeploy.validation.noise import decibels, expected_noise
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.zoo import build

#: Images that distances are measured on, and images that supernets are calibrated on.
_IMAGES, _CALIBRATION_IMAGES = 8, 512

_GRANULARITIES = ("per_channel",)

#: Shapes that keep each architecture of the zoo quick.
_ZOO: Mapping[str, tuple[int, int, int]] = {
    "decoder": (3, 16, 16),
    "densenet-small": (3, 16, 16),
    "mlp": (1, 8, 8),
    "mobilenet_v2": (3, 32, 32),
}

Break = Callable[[QuantizedModel], QuantizedModel]
Row = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its numbers, and what it is held against.

    Attributes:
        network: Its name.
        bits: Width of weights and activations between first and last layer.
        granularity: Of the weights.
        model: The numbers.
        float_network: The yardstick.
        images: Preprocessed, (N, …).
    """

    network: str
    bits: int
    granularity: str
    model: QuantizedModel
    float_network: FloatNetwork
    images: np.ndarray


def profile_of(bits: int, granularity: str, folder: Path) -> DeviceProfile:
    """A profile with one width throughout; the activations between two layers have it, too."""
    folding = "into_scale" if granularity == "per_channel" else "requantize"
    path = folder / f"w{bits}-{granularity}.yaml"
    path.write_text(
        f"schema: 1\nname: w{bits}-{granularity.replace('_', '-')}\ninherits: onnxruntime-x86\n"
        "description: one width throughout\n"
        f"weights: {{bits: {bits}, granularity: {granularity}, batch_norm: {folding}, boundary_bits: 8}}\n"
        f"activations:\n  non_negative: {{bits: {bits}}}\n  signed: {{bits: {bits}}}\n  boundary_bits: 8\n"
    )
    return load_profile(str(path))


def shipped(name: str, data: str, widths: tuple[int, ...], folder: Path) -> Iterator[Case]:
    """A shipped supernet, trained for few bits, at each width and granularity."""
    loaded, progress = load_supernet(name, None), SilentProgress()
    checkpoint = loaded.checkpoint
    images = load_image_sets(
        data, checkpoint.preprocessing, tuple(checkpoint.metadata.classes), calibration=_CALIBRATION_IMAGES
    )
    network = float_network(checkpoint, images.calibration, 0, progress)
    graph = export_float_graph(checkpoint.supernet)
    inputs = checkpoint.preprocessing.apply(images.held_out.spread(_IMAGES).images)
    for bits in widths:
        for granularity in _GRANULARITIES:
            plan = resolve(profile_of(bits, granularity, folder), checkpoint.supernet.network)
            activate_calibrated(checkpoint, plan.subnet, images.calibration, 0, progress)
            frozen = freeze_active(checkpoint, plan, graph, images.calibration, progress)
            yield Case(name, bits, granularity, frozen.model, network, inputs)


def calibrated(name: str, widths: tuple[int, ...], folder: Path) -> Iterator[Case]:
    """An architecture of the zoo with random weights: calibrated only, on noise."""
    torch.manual_seed(0)
    images = torch.randn(_IMAGES, *_ZOO[name])
    supernet = Supernet.from_float(build(name, {}), images[:2], ElasticSpace(bits=(*sorted(widths),)))
    supernet.eval()
    calibrate_batch_norm(supernet, [images])
    supernet.initialize(images)
    network, graph = FloatNetwork(supernet), export_float_graph(supernet)
    for bits in widths:
        for granularity in _GRANULARITIES:
            yield _frozen(name, bits, granularity, supernet, network, graph, images, folder)


def _frozen(
    name: str,
    bits: int,
    granularity: str,
    supernet: Supernet,
    network: FloatNetwork,
    graph: FloatGraph,
    images: torch.Tensor,
    folder: Path,
) -> Case:
    plan = resolve(profile_of(bits, granularity, folder), supernet.network)
    supernet.activate(plan.subnet)
    calibrate_batch_norm(supernet, [images])
    samples = sample_tensors(supernet, [images], tensors_to_calibrate(plan))
    return Case(name, bits, granularity, freeze(supernet, plan, graph, samples), network, images[:4].numpy())


def _middle(model: QuantizedModel) -> str:
    """The weight in the middle of a network."""
    names = [name for name in model.parameters if name.endswith("weight")]
    return names[len(names) // 2]


def _changed(model: QuantizedModel, changes: Mapping[str, Callable[[Any], Any]]) -> QuantizedModel:
    parameters = {
        name: replace(held, codes=np.ascontiguousarray(changes[name](held.codes))) if name in changes else held
        for name, held in model.parameters.items()
    }
    return replace(model, parameters=parameters)


def _channels_rotated(model: QuantizedModel) -> QuantizedModel:
    return _changed(model, {_middle(model): lambda codes: np.roll(codes, 1, 0)})


def _biases_forgotten(model: QuantizedModel) -> QuantizedModel:
    return _changed(model, {name: np.zeros_like for name in model.parameters if name.endswith("bias")})


def _last_negated(model: QuantizedModel) -> QuantizedModel:
    last = [name for name in model.parameters if name.endswith("weight")][-1]
    return _changed(model, {last: lambda codes: np.clip(-codes, -127, 127)})


def _ranges_halved(model: QuantizedModel) -> QuantizedModel:
    """Every range ends at half of what it should, as with statistics of other images."""
    activations = {}
    for name, held in model.activations.items():
        encoding = held.encoding
        end = int(encoding.zero_point) + max(1, (encoding.q_max - int(encoding.zero_point)) // 2)
        activations[name] = replace(held, encoding=replace(encoding, q_max=end))
    return replace(model, activations=activations)


#: The first is none. Networks with random weights are broken in the first way only: each says the same.
BREAKS: Mapping[str, Break] = {
    "as it is": lambda model: model,
    "output channels of one layer rotated": _channels_rotated,
    "all biases forgotten": _biases_forgotten,
    "all ranges halved": _ranges_halved,
    "last layer negated": _last_negated,
}


def measure(case: Case, model: QuantizedModel) -> tuple[DistanceReport, float]:
    """Distance from float, and the share of decisions that are those of the float network."""
    reference = IntegerReference(model)
    meter = DistanceMeter(Graph.of(model), case.float_network.tensors)
    found = reference.run(case.images)
    meter.add(case.images, found)
    ours = decisions(found.outputs[reference.graph.output_names[0]])
    theirs = decide("float", case.float_network.classifier, case.images)
    return meter.report(), float((ours == theirs).mean()) if ours.size else math.nan


def rows_of(case: Case) -> Iterator[Row]:
    """One row for the network as it is, and one for each way in which it is broken."""
    noise = expected_noise(Graph.of(case.model))
    for how, change in list(BREAKS.items())[: 2 if case.network in _ZOO else None]:
        report, agreement = measure(case, change(case.model))
        measured = [tensor for tensor in report.tensors if tensor.sqnr is not None]
        ratios = sorted(float(tensor.sqnr or 0.0) for tensor in measured)
        outputs = [float(tensor.sqnr or 0.0) for tensor in measured if tensor.is_output]
        yield (
            case.network,
            case.bits,
            case.granularity.replace("_", " "),
            how,
            f"{ratios[0]:.1f}",
            f"{ratios[len(ratios) // 2]:.1f}",
            f"{min(outputs):.1f}",
            f"{min(tensor.room for tensor in measured):+.1f}",
            f"{min(float(tensor.sqnr or 0.0) + decibels(noise[tensor.name]) for tensor in measured):+.1f}",
            sum(tensor.floor <= 0 for tensor in measured),
            sum(not tensor.passed for tensor in measured),
            f"{agreement:.0%}",
        )


HEADER = (
    "network", "bits", "weights", "what", "worst, dB", "median, dB", "output, dB", "least room, dB",
    "least above expected noise, dB", "floors of 0 dB", "tensors that fail", "decisions as in float",
)  # fmt: skip


def main() -> None:
    """Measure all networks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cifar10", required=True, help="the images of CIFAR-10, for the supernet that was trained on them"
    )
    data = parser.parse_args().cifar10
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [
            shipped("cifar10-resnet20", data, (8, 4, 3, 2), folder),
            shipped("digits", "digits", (8, 4, 3, 2), folder),
            *(calibrated(network, (8, 4), folder) for network in _ZOO),
        ]
        for case in (case for part in cases for case in part):
            for row in rows_of(case):
                rows.append(row)
                print(*row, sep=" | ", flush=True)
    figures = {"rows": [dict(zip(HEADER, row, strict=True)) for row in rows]}
    write_results(
        "distance_floors",
        "python benchmarks/distance_floors.py --cifar10 FOLDER",
        figures,
        [markdown_table(HEADER, [row for row in rows if row[3] == "as it is"]), markdown_table(HEADER, rows)],
    )


if __name__ == "__main__":
    main()
