"""``docs/without-training.md`` does what it says, as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from eqdeploy.data import DIGITS_PREPROCESSING, load_data
from eqdeploy.profile import load_profile
from eqdeploy.resolve import resolve
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.zoo import build

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "without-training.md").read_text(encoding="utf-8")

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
"""


def test_the_code_makes_a_checkpoint_that_can_be_exported(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert code is not None
    (tmp_path / "my_network.py").write_text(NETWORK)
    (tmp_path / "script.py").write_text(code.group(1))
    names: dict[str, object] = {}
    exec(NETWORK, names)
    make = names["make"]
    assert callable(make)
    model: nn.Module = make().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True)
    checkpoint = load_checkpoint(tmp_path / "calibrated.safetensors", build, make())
    plan = resolve(load_profile("onnxruntime-x86"), checkpoint.supernet.network, None)
    images = torch.from_numpy(
        DIGITS_PREPROCESSING.apply(load_data("digits", split="test", preprocessing=DIGITS_PREPROCESSING).images)
    )
    with torch.no_grad():
        wanted = model(images)
        torch.testing.assert_close(checkpoint.supernet(images), wanted, rtol=1e-5, atol=1e-5)
        checkpoint.supernet.activate(plan.subnet)
        error = checkpoint.supernet(images) - wanted
    assert 0.0 < float(error.abs().max()) < 0.05 * float(wanted.abs().max())
