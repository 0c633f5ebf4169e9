"""What ``docs/imagenet.md`` says can be done can be done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.zoo import build

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
CONVERSION = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if "save_file" in code)
FILES = dict(re.findall(r'"(\w+)": "(\S+\.pth)"', CONVERSION))


def test_every_configuration_is_named() -> None:
    names = {path.name.removesuffix(".train.yaml") for path in (ROOT / "examples" / "imagenet").glob("*.yaml")}
    assert names == set(FILES)
    assert names == set(re.findall(r"`(\w+)\.train\.yaml`", TEXT))


def test_conversion_of_weights(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name, file in FILES.items():
        state = build(name, {}).state_dict()
        if name == "resnet18":  # files of old versions of torch lack the counters
            state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
        torch.save(state, folder / file)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", CONVERSION], cwd=tmp_path, env=environment, check=True)
    for name, file in FILES.items():
        model = build(name, {})
        load_float_weights(model, folder / f"{name}.safetensors")
        expected = torch.load(folder / file, weights_only=True)
        assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in expected.items())
