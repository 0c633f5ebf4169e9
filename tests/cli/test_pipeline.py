"""The whole way from the shipped supernet to a proven artifact, as a user walks it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqdeploy.data import DIGITS_PREPROCESSING, load_data
from eqdeploy.errors import DataError, ValidationError
from eqdeploy.manifest import Provenance, verify_manifest, write_manifest
from eqdeploy.pipeline.records import read_records
from eqdeploy.report import ArtifactReport, read_report

ROOT = Path(__file__).resolve().parents[2]
PROFILE = "snpe-dsp"

Run = Callable[..., subprocess.CompletedProcess[str]]


def result_of(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)["result"]


def test_export(project: Path) -> None:
    folder = project / "build" / PROFILE
    manifest = verify_manifest(folder)
    assert {"model.onnx", "report.json"} <= set(manifest.files)
    assert manifest.provenance.profile == PROFILE
    report = read_report(folder)
    document = json.loads((project / "export.json").read_text())
    assert (document["command"], document["exit_code"]) == ("export", 0)
    (exported,) = document["result"]
    assert exported["directory"] == f"build/{PROFILE}"
    assert ArtifactReport.from_json(json.dumps(exported["report"]), where="export.json") == report
    assert sorted(path.name for path in project.iterdir()) == ["build", "export.json"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [PROFILE]


def test_nothing_in_the_files_tells_where_or_when_they_were_written(project: Path) -> None:
    for path in (path for path in (project / "build" / PROFILE).rglob("*") if path.is_file()):
        assert str(project).encode() not in path.read_bytes(), path.name


def keys(value: object, below: str = "") -> set[str]:
    """All keys of a document but those that are names of tensors or operators."""
    if isinstance(value, list):
        return {key for item in value for key in keys(item)}
    if not isinstance(value, dict):
        return set()
    own = set() if below in ("differing_tensors", "fused") else set(value)
    return own.union(*(keys(item, key) for key, item in value.items()))


def test_every_key_of_a_real_report_is_documented(project: Path) -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "report.md").read_text(encoding="utf-8")))
    document = json.loads((project / "build" / PROFILE / "report.json").read_text())
    assert keys(document) - documented == set()


def test_strict_refuses_calibration_images_of_another_scale(eqdeploy: Run, tmp_path: Path) -> None:
    digits = load_data("digits", split="train", preprocessing=DIGITS_PREPROCESSING)
    wrong, images = tmp_path / "wrong.npz", digits.images.astype(np.float32) / 16
    np.savez(wrong, images=images, labels=digits.labels, classes=np.array(digits.classes))
    done = eqdeploy("export", "--strict", "-q", "--profile", PROFILE, "--data", wrong, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (DataError.exit_code, ""), done.stderr
    assert re.fullmatch(
        r"error: \S+/wrong\.npz: the calibration images do not look like training images: .*mean.*"
        r"leave out --strict\)\n",
        done.stderr,
    )
    assert not (tmp_path / "out").exists()


def test_exporting_again_needs_force_and_gives_the_same_bytes(eqdeploy: Run, artifact: Path, project: Path) -> None:
    done = eqdeploy("export", "--profile", PROFILE)
    assert (done.returncode, done.stdout) == (41, "")
    assert "--force" in done.stderr
    (artifact / "model.onnx").write_bytes(b"old")
    done = eqdeploy("export", "--profile", PROFILE, "--force", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    first = project / "build" / PROFILE
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(artifact) for path in artifact.rglob("*") if path.is_file())
    for name in files:
        assert (artifact / name).read_bytes() == (first / name).read_bytes(), name


def test_a_missed_gate_is_told_with_its_report(eqdeploy: Run) -> None:
    done = eqdeploy("export", "--profile", PROFILE, "--min-accuracy", "1", "--json", "-")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == 22
    assert document["error"]["type"] == "AccuracyError"
    (exported,) = document["result"]
    assert exported["report"]["verdict"] == "failed"
    assert exported["report"]["accuracy"]["status"] == "failed"
    assert exported["report"]["parity"]["status"] == "passed"


def test_validate(eqdeploy: Run, artifact: Path) -> None:
    done = eqdeploy("validate", artifact, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert result_of(done)["verdict"] == "valid"


def test_a_limit_on_the_distance_from_float_is_told_with_the_tensor(eqdeploy: Run, artifact: Path) -> None:
    done = eqdeploy("validate", artifact, "--min-sqnr", "60", "--json", "-")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == 22
    assert document["error"]["where"] == f"{PROFILE}: distance"
    level = document["result"]["distance"]
    failed = [row["tensor"] for row in level["details"]["tensors"] if not row["passed"]]
    assert failed
    assert failed[0] in document["error"]["message"]
    assert document["result"]["parity"]["status"] == document["result"]["agreement"]["status"] == "passed"


def test_validate_finds_a_changed_file_first(eqdeploy: Run, artifact: Path) -> None:
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(bytes(content))
    done = eqdeploy("validate", artifact)
    assert (done.returncode, done.stdout) == (21, "")
    assert "model.onnx was changed" in done.stderr
    assert done.stderr.count("\n") == 1


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON document."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def set_origin(artifact: Path, key: str, value: object) -> None:
    """Change the origin wherever it is recorded."""
    for name in ("manifest.json", "report.json"):
        rewrite(artifact / name, lambda document: document["provenance"].update({key: value}))


def replace_subnet(artifact: Path) -> None:
    """Exchange one form of the subnet."""
    rewrite(artifact / "subnet.json", lambda d: d["weights"].update({"stem.0": "2-per_tensor-symmetric-signed"}))


def replace_exporter(artifact: Path) -> None:
    """Another format would be read back from other files, and the device's own would be left unread."""
    rewrite(artifact / "config.json", lambda d: d["profile"]["export"].update(format="onnx_qdq"))


CONTRADICTIONS: list[tuple[Callable[[Path], object], str]] = [
    (lambda a: set_origin(a, "profile_digest", "0" * 64), "report.json: provenance: profile_digest"),
    (lambda a: set_origin(a, "subnet_digest", "0" * 64), "report.json: provenance: subnet_digest"),
    (lambda a: set_origin(a, "supernet", "other"), "report.json: provenance: supernet is 'other'"),
    (lambda a: set_origin(a, "seed", 5), "report.json: provenance: seed is 5"),
    (replace_subnet, "provenance: subnet_digest"),
    (replace_exporter, "provenance: profile_digest"),
    (lambda a: rewrite(a / "config.json", lambda d: d["profile"].pop("export")), "config.json: profile: export"),
    (lambda a: rewrite(a / "config.json", lambda d: d.update(min_accuracy=5.0)), "config.json: min_accuracy"),
    (lambda a: rewrite(a / "config.json", lambda d: d.update(seed=1 << 70)), "config.json: seed"),
    (lambda a: rewrite(a / "config.json", lambda d: d["preprocessing"].update(std=[0])), "config.json: preprocessing"),
    (lambda a: (a / "subnet.json").write_text("{}"), "subnet.json: not a subnet file"),
    (
        lambda a: rewrite(
            a / "report.json", lambda d: d["plan"]["weights"][0].update(device="2-per_tensor-symmetric-signed")
        ),
        "report.json: plan: stem.0",
    ),
    (
        lambda a: rewrite(a / "report.json", lambda d: d["plan"]["tensors"][0].update(float_readers=["stem_1"])),
        "report.json: plan: x",
    ),
    (lambda a: rewrite(a / "report.json", lambda d: d["plan"]["tensors"].pop()), "does not add up to the coverage"),
    (
        lambda a: rewrite(a / "report.json", lambda d: d["folding"][0].update(relative_error=float("inf"))),
        "report.json: holds a number that is not finite",
    ),
]


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS, ids=[message for _, message in CONTRADICTIONS])
def test_a_file_that_contradicts_another_is_found_though_its_hash_is_right(
    artifact: Path, change: Callable[[Path], object], message: str
) -> None:
    change(artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(artifact, Provenance.model_validate(manifest["provenance"]))
    with pytest.raises(ValidationError, match=re.escape(message)):
        read_records(artifact)


def test_the_records_of_an_export_agree(artifact: Path) -> None:
    records = read_records(artifact)
    assert records.report == read_report(artifact)
    assert records.subnet.digest == records.report.provenance.subnet_digest


def test_validate_does_not_pass_other_images_off_as_those_of_the_export(
    eqdeploy: Run, artifact: Path, tmp_path: Path
) -> None:
    np.savez(
        tmp_path / "few.npz", images=load_data("digits", split="test", preprocessing=DIGITS_PREPROCESSING).images[:4]
    )
    done = eqdeploy("validate", artifact, "--data", "few.npz", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert result_of(done)["notes"][-1] == "proved on other images: few.npz"
    set_origin(artifact, "data_digest", "0" * 64)
    write_manifest(artifact, read_report(artifact).provenance)
    done = eqdeploy("validate", artifact)
    assert (done.returncode, done.stdout) == (40, "")
    assert "error: digits: holds other images than those of the export" in done.stderr


def test_resolve_gives_a_subnet_that_export_takes(eqdeploy: Run, tmp_path: Path, project: Path) -> None:
    resolved = result_of(eqdeploy("resolve", "--profile", PROFILE, "--json", "-"))
    assert all(row["reason"] for row in (*resolved["plan"]["weights"], *resolved["plan"]["tensors"]))
    (tmp_path / "subnet.json").write_text(json.dumps(resolved["subnet"]))
    done = eqdeploy("export", "--profile", PROFILE, "--subnet", "subnet.json", "-o", "out", "-q", "--json", "-")
    (exported,) = result_of(done)
    assert exported["directory"] == f"out/{PROFILE}"
    digest = read_report(project / "build" / PROFILE).provenance.subnet_digest
    assert exported["report"]["provenance"]["subnet_digest"] == digest
    forms = [
        [(row["layer"], row["device"]) for row in plan["weights"]]
        for plan in (resolved["plan"], exported["report"]["plan"])
    ]
    assert forms[0] == forms[1]


def test_eval(eqdeploy: Run, artifact: Path) -> None:
    for arguments in ((artifact,), ("--profile", PROFILE), ()):
        (*_, row) = result_of(eqdeploy("eval", *arguments, "--json", "-"))["rows"]
        assert row["accuracy"] == row["correct"] / row["images"]
        assert row["accuracy"] > 0.9
    done = eqdeploy("eval", artifact, "--min-accuracy", "1")
    assert done.returncode == 22
    assert "accuracy" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_project_file_and_flags(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "eqdeploy.yaml").write_text(f"profiles: [{PROFILE}, tensorrt]\noutput: artifacts\nmin_accuracy: 1.0\n")
    done = eqdeploy("export", "--profile", "onnxruntime-x86", "--min-accuracy", "0.5", "-q")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["onnxruntime-x86"]
    assert eqdeploy("resolve").returncode == 2  # two profiles


def test_every_profile_at_once(eqdeploy: Run, tmp_path: Path) -> None:
    names = ("onnxruntime-w4a4", "onnxruntime-w2a4", "tensorrt")
    done = eqdeploy("export", *(word for name in names for word in ("--profile", name)), "--json", "-")
    assert done.returncode == 0, done.stderr
    assert [entry["report"]["verdict"] for entry in result_of(done)] == ["valid"] * 3
    for name in names:
        verify_manifest(tmp_path / "build" / name)


def test_a_supernet_that_is_none(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    done = eqdeploy("export", "--profile", PROFILE, "--supernet", "broken.safetensors")
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr.splitlines()[-1].startswith("error: broken.safetensors")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "build").exists()
