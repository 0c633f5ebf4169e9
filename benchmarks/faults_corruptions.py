"""Corruptions of finished artifacts; all other files are made consistent, as a wrong exporter would leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from faults_planted import one_code, smuggled
from numpy.typing import NDArray
from onnx import numpy_helper

_LAYERS = ("stem.0", "block1.conv1", "depthwise.0", "block2.conv2", "fc")
_TENSORS = ("x", "stem_2", "block1_relu", "pointwise_2")

Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Corruption:
    """A change of the files of an artifact.

    Attributes:
        name: What is changed.
        profile: Profile of the artifact.
        edit: Changes files in a folder.
        consistent: Whether ``encodings.json`` is written anew from the model.
    """

    name: str
    profile: str
    edit: Edit
    consistent: bool = True


def _model(change: Callable[[onnx.ModelProto], None]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "model.onnx"
        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString(deterministic=True))

    return edit


def _value(name: str, change: Callable[[NDArray[Any]], Any]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        (item,) = [item for item in model.graph.initializer if item.name == name]
        array = numpy_helper.to_array(item)
        changed = np.asarray(change(array.copy())).astype(array.dtype)
        assert not np.array_equal(changed, array), name
        item.CopyFrom(numpy_helper.from_array(changed, name))

    return _model(edit)


def _all(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for part in edits:
            part(folder)

    return edit


def _json(file: str, change: Callable[[Any], Any]) -> Edit:
    def edit(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        change(document)
        (folder / file).write_text(json.dumps(document))

    return edit


def _ulp(array: NDArray[Any]) -> Any:
    return np.nextafter(array, np.float32(np.inf))


_OF_WEIGHTS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "one code changed": one_code,
    "output channels rotated": lambda codes: np.roll(codes, 1, 0),
    "last axis flipped": lambda codes: np.flip(codes, -1),
    "one channel zero": lambda codes: np.concatenate([np.zeros_like(codes[:1]), codes[1:]]),
}
_OF_BIASES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "one bias off by one": one_code,
    "biases forgotten": np.zeros_like,
    "biases rotated": lambda codes: np.roll(codes, 1, 0),
}


def _attribute(operator: str, position: int, name: str, value: list[int]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = [node for node in model.graph.node if node.op_type == operator][position]
        (item,) = [item for item in node.attribute if item.name == name]
        item.ints[:] = value

    return _model(edit)


def _wired(model: onnx.ModelProto) -> None:
    add = next(node for node in model.graph.node if node.op_type == "Add")
    add.input[0] = add.input[1]


def _retyped(before: str, after: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == before).op_type = after

    return _model(edit)


def _scaled(layer: str, change: Callable[[NDArray[Any]], Any]) -> Edit:
    """Another weight scale, and the bias scale that goes with it."""

    def edit(model: onnx.ModelProto) -> None:
        held = {item.name: item for item in model.graph.initializer}
        scale = np.asarray(change(numpy_helper.to_array(held[f"{layer}.weight_scale"]).copy()), np.float32)
        held[f"{layer}.weight_scale"].CopyFrom(numpy_helper.from_array(scale, f"{layer}.weight_scale"))
        name = f"{layer}.bias_scale"
        reader = next(
            node
            for node in model.graph.node
            if f"{layer}.weight_quantized" in node.input
            or (node.op_type in ("Conv", "Gemm") and any(layer in value for value in node.input))
        )
        source = next(node for node in model.graph.node if reader.input[0] in node.output)
        grid = numpy_helper.to_array(held[source.input[1]]) * scale
        held[name].CopyFrom(numpy_helper.from_array(np.asarray(grid, np.float32), name))

    return _model(edit)


def corruptions() -> Iterator[Corruption]:
    """All corruptions."""
    profile = "onnxruntime-x86"
    for layer in _LAYERS:
        for what, change in _OF_WEIGHTS.items():
            yield Corruption(f"{layer}: {what}", profile, _value(f"{layer}.weight", change))
        for what, change in _OF_BIASES.items():
            yield Corruption(f"{layer}: {what}", profile, _value(f"{layer}.bias", change))
        yield Corruption(f"{layer}: scales off by one ulp", profile, _scaled(layer, _ulp))
        yield Corruption(f"{layer}: scales rotated", profile, _scaled(layer, lambda scale: np.roll(scale, 1)))
    for tensor in _TENSORS:
        yield Corruption(f"{tensor}: scale off by one ulp", profile, _value(f"{tensor}_scale", _ulp))
        yield Corruption(f"{tensor}: scale x 1.1", profile, _value(f"{tensor}_scale", lambda s: s * 1.1))
        yield Corruption(f"{tensor}: zero-point +3", profile, _value(f"{tensor}_zero_point", lambda z: z + 3))
    yield from _of_structure(profile)
    yield from _of_records(profile)


def _of_structure(profile: str) -> Iterator[Corruption]:
    yield Corruption("padding moved", profile, _attribute("Conv", 0, "pads", [2, 0, 1, 1]))
    yield Corruption("residual branch read twice", profile, _model(_wired))
    yield Corruption("average pool as maximum", profile, _retyped("GlobalAveragePool", "GlobalMaxPool"))
    yield Corruption("ReLU left out", profile, _retyped("Relu", "Identity"))
    yield Corruption("node smuggled in", profile, lambda folder: smuggled(folder / "model.onnx"))
    yield Corruption("node smuggled in, tensorrt", "tensorrt", lambda folder: smuggled(folder / "model.onnx"))
    classes = [_value(f"fc.{part}", lambda array: np.roll(array, 1, 0)) for part in ("weight", "bias")]
    yield Corruption("classes rotated", profile, _all(*classes))


def _of_records(profile: str) -> Iterator[Corruption]:
    for key, value in (("seed", 7), ("calibration_images", 32)):
        yield Corruption(
            f"config.json: {key}", profile, _json("config.json", lambda d, k=key, v=value: d.update({k: v}))
        )
    yield Corruption(
        "config.json: mean",
        profile,
        _json("config.json", lambda d: d["preprocessing"].update(mean=[0.9] * len(d["preprocessing"]["mean"]))),
    )
    yield Corruption("encodings.json: a scale", profile, _encodings_scale, consistent=False)
    yield Corruption(
        "subnet.json: a form",
        profile,
        _json("subnet.json", lambda d: d["weights"].update({"stem.0": "2-per_tensor-symmetric-signed"})),
    )
    yield Corruption(
        "report.json: relative error",
        profile,
        _json("report.json", lambda d: d["folding"][0].update(relative_error=0.5)),
    )


def _encodings_scale(folder: Path) -> None:
    """Change the first number that is called a scale."""
    path = folder / "encodings.json"
    document = json.loads(path.read_text())

    def change(part: Any) -> bool:
        if isinstance(part, dict):
            if "scale" in part:
                scale = part["scale"]
                part["scale"] = [scale[0] * 1.5, *scale[1:]] if isinstance(scale, list) else scale * 1.5
                return True
            return any(change(value) for value in part.values())
        return isinstance(part, list) and any(change(value) for value in part)

    assert change(document)
    path.write_text(json.dumps(document))
