"""An artifact whose tensors lie beside the model, as those of models above 2 GiB do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from eqdeploy.errors import ValidationError

Run = Callable[..., subprocess.CompletedProcess[str]]

PROFILE = """
schema: 1
name: beside
description: Tensors beside the model, however small the model is.
inherits: onnxruntime-x86
export:
  options: {external_data_threshold: 1000}
"""


def test_a_model_with_its_tensors_beside_it_goes_all_the_way(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "beside.yaml").write_text(PROFILE)
    done = eqdeploy("export", "-q", "--profile", "beside.yaml")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "build" / "beside"
    assert (folder / "model.onnx.data").stat().st_size > 10_000
    done = eqdeploy("validate", "-q", folder, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["result"]
    assert report["verdict"] == "valid"
    assert {row["file"]: row["check"] for row in report["files"]}["model.onnx.data"] == "rederived"
    assert eqdeploy("eval", "-q", folder, "--min-accuracy", "0.9").returncode == 0
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    assert eqdeploy("validate", "-q", folder).returncode == ValidationError.exit_code
