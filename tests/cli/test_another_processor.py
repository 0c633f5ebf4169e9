"""An artifact is valid on another processor than that of its export, and wrong calibration is still found there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eqdeploy.errors import ValidationError
from eqdeploy.manifest import write_manifest
from eqdeploy.pipeline.validate import validate_artifact
from eqdeploy.progress import SilentProgress
from eqdeploy.report import ArtifactReport, LevelStatus, read_report
from eqdeploy.requests import ValidateRequest

Run = Callable[..., subprocess.CompletedProcess[str]]

#: What PyTorch and oneDNN take for an instruction set without vectors of 256 bits; other processors ignore it.
OTHER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"}


def rows(report: ArtifactReport) -> list[Any]:
    found: Any = report.origin.details["checks"]
    return list(found)


def checks(report: ArtifactReport) -> dict[str, Any]:
    return {row["name"]: row for row in rows(report)}


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def renew_manifest(artifact: Path) -> None:
    origin = read_report(artifact).provenance
    (artifact / "manifest.json").unlink()
    write_manifest(artifact, origin)


def as_from_elsewhere(artifact: Path) -> None:
    """Let the export have measured other bits than this processor does."""
    rewrite(artifact / "report.json", lambda d: d["origin"]["details"].update(calibration="0" * 64))


def validated(artifact: Path) -> ArtifactReport:
    renew_manifest(artifact)
    return validate_artifact(artifact, ValidateRequest(parity_images=2), SilentProgress())


def test_an_artifact_is_valid_on_another_instruction_set_with_other_threads(eqdeploy: Run, artifact: Path) -> None:
    done = eqdeploy("validate", artifact, "--json", "-", variables=OTHER)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["result"]
    assert report["verdict"] == "valid"
    numbers = {row["name"]: row for row in report["origin"]["details"]["checks"]}["numbers"]
    assert (numbers["passed"], numbers["differing"]) == (True, 0)


def test_where_other_bits_are_measured_the_record_is_what_counts(artifact: Path) -> None:
    as_from_elsewhere(artifact)
    report = validated(artifact)
    assert report.origin.status is LevelStatus.PASSED, report.origin.summary
    found = [row for row in rows(report) if row["name"] == "calibration"]
    assert [row["passed"] for row in found] == [True, True]
    assert found[0]["largest_distance"] < found[0]["allowed_distance"] / 10
    assert checks(report)["numbers"]["differing"] == 0


def times(name: str, factor: float) -> Callable[[Any], object]:
    """Scale the first statistic of a kind."""

    def change(document: Any) -> None:
        values = next(value for key, value in document["statistics"].items() if key.endswith(name))
        values[3] *= factor

    return change


def last_range(key: str, change: Callable[[Any], Any]) -> Callable[[Any], object]:
    def edit(document: Any) -> None:
        found = list(document["ranges"].values())[-1]
        found[key] = change(found[key])

    return edit


FAULTS: dict[str, Callable[[Any], object]] = {
    "a variance 3 % too large": times("running_var", 1.03),
    "a range 3 % too large": last_range("scale", lambda scale: scale * 1.03),
    "a layer left out": lambda document: document["statistics"].popitem(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_of_wrong_calibration_is_found_elsewhere(artifact: Path, fault: str) -> None:
    rewrite(artifact / "calibration.json", FAULTS[fault])
    as_from_elsewhere(artifact)
    report = validated(artifact)
    assert report.origin.status is LevelStatus.FAILED
    assert report.origin.summary.startswith("calibration: ")


def test_with_the_arithmetic_of_the_export_every_bit_counts(artifact: Path) -> None:
    rewrite(artifact / "calibration.json", times("running_var", 1.0 + 2.0**-20))
    report = validated(artifact)
    assert report.origin.summary.startswith("calibration: ")


def test_an_artifact_without_a_record_is_refused(artifact: Path) -> None:
    (artifact / "calibration.json").unlink()
    with pytest.raises(ValidationError, match=r"calibration\.json: is missing"):
        validated(artifact)
