"""Make the seeds of the corpus anew, small valid files of every kind, after a change of a format.

Run from the repository root and look at the difference before committing it; regressions in the corpus stay:

    python -m tests.fuzz.seeds
"""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from eqdeploy.encoding_table import write_encodings
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.search.predictor import Predictor, Target
from eqdeploy.search.store import MeasurementStore
from eqdeploy.training.state import Phase, Position, save_state
from eqdeploy.zoo import build
from tests.fuzz.targets import CORPUS, GOLDEN, state_companions

_TRAINING = """\
schema: 1
model: {architecture: mlp, arguments: {width: 4, depth: 2}}
data: digits
preprocessing: {image_size: [8, 8], channels: 1, mean: [0.305], std: [0.376], scale: 0.0625}
space: {bits: [2, 3, 4, 6, 8]}
float_training: {epochs: 8, batch_size: 64, learning_rate: 1.0e-2}
supernet_training: {epochs: 2, batch_size: 64, learning_rate: 1.0e-3}
execution: {precision: float32, channels_last: false, compile: false}
threads: 1
"""

_PROFILE = """\
schema: 1
inherits: snpe-dsp
name: small
description: A profile with something of every kind.
gates: {min_sqnr: 0.0}
weights:
  boundary_bits: 6
"""

_PROJECT = "supernet: a.safetensors\nprofiles: [snpe-dsp, ./b.yaml]\ndata: digits\nmin_accuracy: 0.5\nseed: 3\n"

_LOG = '{"phase": "execution", "precision": "float32", "channels_last": false, "compile": true}\n' * 2

_LATENCY = 'layer,weight_bits,activation_bits,milliseconds\nconv,8,8,0.5\n"a,""b",4,8,1e-3\n'


def main() -> None:
    """Write every seed."""
    with tempfile.TemporaryDirectory() as folder:
        made = _run_commands(Path(folder))
        for target, name in _COPIED:
            _put(target, Path(name).name, (made / name).read_bytes())
    _put("profile", "inherits.yaml", _PROFILE.encode())
    _put("training-configuration", "train.yaml", _TRAINING.encode())
    _put("project", "eqdeploy.yaml", _PROJECT.encode())
    _put("training-log", "log.jsonl", _LOG.encode())
    _put("latency-table", "latency.csv", _LATENCY.encode())
    _put("onnx", "model.onnx", (GOLDEN / "onnx_qdq" / "model.onnx").read_bytes())
    _put("tensorrt-qdq", "model.onnx", (GOLDEN / "tensorrt" / "model.onnx").read_bytes())
    _put("calibration-cache", "calibration.cache", (GOLDEN / "tensorrt/tensorrt/calibration.cache").read_bytes())
    _put("aimet-encodings", "model.encodings", (GOLDEN / "snpe" / "snpe" / "model.encodings").read_bytes())
    (CORPUS / "encodings").mkdir(parents=True, exist_ok=True)
    write_encodings(CORPUS / "encodings", read_model(GOLDEN / "onnx_qdq" / "model.onnx"))
    _put("manifest", "empty.json", _without_files((CORPUS / "manifest" / "manifest.json").read_bytes()))
    _put_state()
    _put_weights()
    _put_predictor()
    _put_data()


#: Target and file that the commands make.
_COPIED = (
    ("checkpoint", "trained/supernet.safetensors"),
    ("measurements-header", "measured/header.json"),
    ("measurements", "measured/measurements-0.jsonl"),
    ("manifest", "build/small/manifest.json"),
    ("report", "build/small/report.json"),
    ("configuration", "build/small/config.json"),
    ("subnet", "build/small/subnet.json"),
)


def _run_commands(folder: Path) -> Path:
    """Train, measure and export something small."""
    (folder / "train.yaml").write_text(_TRAINING)
    (folder / "small.yaml").write_text(_PROFILE)
    supernet = ["--supernet", "trained/supernet.safetensors"]
    for command in (
        ["train", "train.yaml", "--out", "trained"],
        [
            "sample",
            "--count",
            "16",
            "--forms",
            "per_layer",
            "--output",
            "measured",
            "--images",
            "64",
            "--calibration-images",
            "64",
            *supernet,
        ],
        ["export", "--profile", "small.yaml", *supernet],
    ):
        subprocess.run([sys.executable, "-m", "eqdeploy", *command, "--quiet"], cwd=folder, check=True)
    return folder


def _put(target: str, name: str, content: bytes) -> None:
    """Write one seed."""
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _without_files(manifest: bytes) -> bytes:
    """A manifest that agrees with a folder in which nothing else is."""
    return json.dumps({**json.loads(manifest), "files": {}}).encode()


def _put_state() -> None:
    """The state of a training after one step."""
    torch.manual_seed(0)
    model, optimizer, generators = state_companions()
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    path = CORPUS / "training-state" / "state.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state(
        path,
        position=Position(Phase.FLOAT, 1, 0),
        model=model,
        optimizer=optimizer,
        average=None,
        generators=generators,
        configuration={},
    )


def _put_weights() -> None:
    torch.manual_seed(0)
    _put("float-weights", "weights.safetensors", save(dict(build("mlp", {"width": 2, "depth": 1}).state_dict())))


def _put_predictor() -> None:
    """A predictor of the network whose measurements are seeds, smaller than any that is fitted."""
    encoding = MeasurementStore.open(CORPUS / "measurements-header").header.encoding
    random = np.random.default_rng(0)
    widths = (len(encoding.columns), 3, 1)
    shapes = [(2, inputs, outputs) for inputs, outputs in pairwise(widths)]
    Predictor(
        encoding=encoding,
        target=Target.ACCURACY,
        weights=tuple(random.normal(size=shape).astype(np.float32) for shape in shapes),
        biases=tuple(np.zeros((2, shape[2]), np.float32) for shape in shapes),
        offset=0.5,
        scale=2.0,
        seen=np.ones(widths[0], np.bool_),
        provenance={"seed": 0},
    ).save(CORPUS / "predictor" / "predictor.safetensors")


def _put_data() -> None:
    """Images and other inputs, in archives, pickles and files."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (6, 8, 8), dtype=np.uint8)
    labels = np.arange(6) % 3
    _put("npz-images", "plain.npz", _npz(images=images, labels=labels, classes=np.array(["a", "b", "c"])))
    splits = {"x_train": images / 255, "y_train": labels, "x_test": images / 255, "y_test": labels}
    _put("npz-images", "splits.npz", _npz(**splits))
    picture = Image.fromarray(random.integers(0, 255, (6, 7, 3), dtype=np.uint8))
    encoded = {}
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        encoded[kind] = stream.getvalue()
        _put("image-file", f"a.{kind.lower()}", encoded[kind])
    jpeg = np.frombuffer(encoded["JPEG"] * 2, np.uint8)
    offsets = np.array([0, len(jpeg) // 2, len(jpeg)])
    _put("npz-images", "packed.npz", _npz(jpeg=jpeg, offsets=offsets, labels=np.array([0, 1])))
    _put("npz-inputs", "tokens.npz", _npz(inputs=random.integers(0, 16, (5, 4)), labels=np.arange(5) % 2))
    data = random.integers(0, 255, (2, 3072), dtype=np.uint8)
    batch = {
        "batch_label": "one",
        "labels": [3, 4],
        "data": data,
        "filenames": ["a.png", "b.png"],
        "label_names": ["x"],
    }
    for protocol in (2, 4):
        _put("pickle", "batch" if protocol == 2 else "batch-4", pickle.dumps(batch, protocol=protocol))


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


if __name__ == "__main__":
    main()
