"""Why 4-bit activations are not as fast as 8-bit ones on ONNX Runtime: what their additional nodes take.

A 4-bit code lives in a byte. No kernel saturates at 15, so a Clip follows every quantizer; and a residual sum that
keeps 8 bits is requantized, by a DequantizeLinear and a QuantizeLinear, for the convolution that reads 4. Both are
taken out of the exported file in turn (the numbers are then wrong, all other nodes stay), and all files are timed
together.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from common import markdown_table, write_results

from eqdeploy.pipeline import export_profiles
from eqdeploy.pipeline.layer_times import median_milliseconds
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import ExportRequest

SUPERNET = "cifar10-resnet20"
WIDE, NARROW = "onnxruntime-x86", "onnxruntime-w4a4"
RUNS = 400


def main() -> None:
    """Export both widths, take parts out of the narrow one, time all."""
    with tempfile.TemporaryDirectory(prefix="eqdeploy-") as folder:
        models = {name: _export(name, Path(folder)) for name in (WIDE, NARROW)}
    narrow = models[NARROW]
    variants = {
        "W8A8": models[WIDE],
        "W4A4": narrow,
        "W4A4 without Clip": without(narrow, "Clip"),
        "W4A4 without requantization": without_requantization(narrow),
        "W4A4 without both": without(without_requantization(narrow), "Clip"),
    }
    nodes = {name: (_count(model, "Clip"), _count(model, "Identity")) for name, model in variants.items()}
    serialized = {name: model.SerializeToString() for name, model in variants.items()}
    times = median_milliseconds(serialized, runs=RUNS, threads=1, progress=SilentProgress())
    rows = [[name, *nodes[name], f"{1000 * time:.0f}", f"{time / times['W8A8']:.3f}"] for name, time in times.items()]
    write_results(
        "latency_parts",
        "python benchmarks/latency_parts.py",
        {"supernet": SUPERNET, "runs": RUNS, "milliseconds": times, "nodes": nodes},
        [
            f"{SUPERNET}, one image, one thread, median of {RUNS} measurements that take turns.",
            markdown_table(["file", "Clip", "requantizations", "microseconds", "of W8A8"], rows),
        ],
    )


def without(model: onnx.ModelProto, operator: str) -> onnx.ModelProto:
    """The model in which all nodes of an operator are passed by."""
    return _bypassing(model, {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == operator})


def without_requantization(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in which a requantized tensor has the codes that it was made of."""
    producers = {node.output[0]: node for node in model.graph.node}
    bypassed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in producers:
            continue
        quantizer = producers[node.input[0]]
        if quantizer.op_type == "Clip":
            quantizer = producers[quantizer.input[0]]
        before = producers.get(quantizer.input[0])
        if before is not None and before.op_type == "Identity":
            bypassed[node.input[0]] = producers[before.input[0]].input[0]
    return _bypassing(model, bypassed)


def _bypassing(model: onnx.ModelProto, bypassed: dict[str, str]) -> onnx.ModelProto:
    """A copy whose readers of some values read others; what nobody reads any more is dropped."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for node in copied.graph.node:
        for index, name in enumerate(node.input):
            while name in bypassed:
                name = bypassed[name]
            node.input[index] = name
    nodes = list(copied.graph.node)
    wanted = {output.name for output in copied.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del copied.graph.node[:]
    copied.graph.node.extend(reversed(kept))
    return copied


def _count(model: onnx.ModelProto, operator: str) -> int:
    """Number of nodes of an operator."""
    return sum(node.op_type == operator for node in model.graph.node)


def _export(profile: str, folder: Path) -> onnx.ModelProto:
    """Export the supernet on random images: speed does not depend on what they show."""
    images = folder / "images.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8))
    request = ExportRequest(profiles=(profile,), output=folder, supernet=SUPERNET, data=str(images))
    export_profiles(request, SilentProgress())
    return onnx.load(folder / profile / "model.onnx")


if __name__ == "__main__":
    main()
