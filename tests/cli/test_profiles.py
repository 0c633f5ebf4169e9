"""Device profiles from the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eqdeploy.profile import load_profile, shipped_profiles

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_list(eqdeploy: Run) -> None:
    rows = json.loads(eqdeploy("profiles", "list", "--json", "-").stdout)["result"]
    assert [row["name"] for row in rows] == list(shipped_profiles())
    assert all(row["device"] and row["description"] for row in rows)


@pytest.mark.parametrize("name", shipped_profiles())
def test_what_is_shown_is_a_profile_file_of_the_same_meaning(eqdeploy: Run, tmp_path: Path, name: str) -> None:
    shown = eqdeploy("profiles", "show", name)
    (tmp_path / "copy.yaml").write_text(shown.stdout)
    assert load_profile(str(tmp_path / "copy.yaml")) == load_profile(name)
    document = json.loads(eqdeploy("profiles", "show", name, "--json", "-").stdout)["result"]
    assert document["digest"] == load_profile(name).digest


def test_an_exporter_that_does_not_exist(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "npu.yaml").write_text(
        "inherits: snpe-dsp\nschema: 1\nname: npu\ndescription: d\nexport: {format: onnx-qdq}\n"
    )
    done = eqdeploy("export", "--profile", "npu.yaml")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == "error: npu: export.format: there is no exporter 'onnx-qdq' (did you mean 'onnx_qdq'?)\n"


def test_validate(eqdeploy: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("schema: 1\nname: own\ndescription: Ours.\ninherits: snpe-dsp\n")
    done = eqdeploy("profiles", "validate", "own.yaml", "tensorrt", "--json", "-")
    assert [row["name"] for row in json.loads(done.stdout)["result"]] == ["own", "tensorrt"]
    own.write_text("schema: 1\nname: own\ndescription: Ours.\ninherits: snpe-dsp\nweights: {bit: [4]}\n")
    done = eqdeploy("profiles", "validate", "tensorrt", "own.yaml")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr.startswith("error: own.yaml:5: weights.bit: unknown key")
    assert done.stderr.count("\n") == 1
