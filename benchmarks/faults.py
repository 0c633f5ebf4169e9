"""Plant faults in the stages of an export and in finished artifacts, and see which level of the proof catches each.

    python benchmarks/faults.py            # everything; exit 1 if a fault survives

Every fault is planted in this process. The supernet and the structure are shared, and a small part of the digits is
used, so that one fault costs seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown_table, write_results
from faults_corruptions import Corruption, corruptions
from faults_planted import PLANTED, Planted

from eqdeploy.data import LoadOptions, load_images
from eqdeploy.encoding_table import write_encodings
from eqdeploy.errors import EqDeployError
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.manifest import Provenance, write_manifest
from eqdeploy.pipeline import export, validate
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.progress import SilentProgress
from eqdeploy.report import ArtifactReport, LevelStatus, Verdict, read_report
from eqdeploy.requests import ExportRequest, ValidateRequest

_IMAGES = 160
_PARITY_IMAGES = 8


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while."""
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Load the supernet and export the structure once; every export gets a copy of its own."""
    loaded = load_supernet("digits", None)
    graph = export.export_float_graph(copy.deepcopy(loaded.checkpoint.supernet))

    def copied(*_: Any) -> Any:
        return copy.deepcopy(loaded)

    with (
        replaced(export, "load_supernet", copied),
        replaced(validate, "load_supernet", copied),
        replaced(export, "export_float_graph", lambda _: graph),
    ):
        yield


def small_data(folder: Path) -> Path:
    """Some labelled digits as one archive."""
    loaded = load_supernet("digits", None)
    images = load_images(
        "digits", split="test", preprocessing=loaded.checkpoint.preprocessing, options=LoadOptions()
    ).spread(_IMAGES)
    path = folder / "few.npz"
    np.savez(path, images=images.images, labels=images.labels, classes=np.asarray(images.classes))
    return path


def request(profile: str, data: Path, output: Path) -> ExportRequest:
    """A small export."""
    return ExportRequest(
        profiles=(profile,),
        data=str(data),
        output=output,
        force=True,
        calibration_images=_IMAGES,
        parity_images=_PARITY_IMAGES,
    )


def caught_by(run: Callable[[], ArtifactReport]) -> list[str]:
    """Levels that fail, or the stage that refuses."""
    try:
        report = run()
    except EqDeployError as error:
        return [f"refused: {error.message.splitlines()[0][:80]}".replace("|", "/")]
    except Exception as error:  # an internal error is no verdict: the fault counts as not caught
        print(f"crash: {error!r}")
        return []
    levels = {name: getattr(report, name) for name in type(report).model_fields}
    failed = [name for name, level in levels.items() if getattr(level, "status", None) is LevelStatus.FAILED]
    return failed or ([] if report.verdict is Verdict.VALID else [f"verdict {report.verdict}"])


def planted(fault: Planted, data: Path, folder: Path) -> list[str]:
    """Export with a fault."""
    with replaced(fault.owner, fault.attribute, fault.make(getattr(fault.owner, fault.attribute))):
        return caught_by(
            lambda: export.export_profiles(request(fault.profile, data, folder), SilentProgress())[0].report
        )


def corrupted(corruption: Corruption, good: Path, data: Path, folder: Path) -> list[str]:
    """Validate an artifact with a corruption; its manifest is renewed."""
    artifact = folder / corruption.profile
    shutil.rmtree(artifact, ignore_errors=True)
    shutil.copytree(good / corruption.profile, artifact)
    origin: Provenance = read_report(artifact).provenance

    def run() -> ArtifactReport:
        corruption.edit(artifact)
        if corruption.consistent:
            write_encodings(artifact, read_model(artifact / "model.onnx"))
        (artifact / "manifest.json").unlink()
        write_manifest(artifact, origin)
        asked = ValidateRequest(data=str(data), supernet="digits", parity_images=_PARITY_IMAGES)
        return validate.validate_artifact(artifact, asked, SilentProgress())

    return caught_by(run)


def main() -> int:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name holds this text; writes no results")
    only = parser.parse_args().only
    rows: list[tuple[str, str, str, str]] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, sharing():
        folder = Path(name)
        data = small_data(folder)
        for profile in ("onnxruntime-x86", "tensorrt"):
            (result,) = export.export_profiles(request(profile, data, folder / "good"), SilentProgress())
            assert not caught_by(lambda report=result.report: report), result.report.failure()
        for fault in PLANTED:
            if only in fault.name:
                levels = planted(fault, data, folder / "planted")
                rows.append((fault.stage, fault.name, fault.profile, ", ".join(levels) or "**survives**"))
                print(*rows[-1], sep=" | ", flush=True)
        for corruption in corruptions():
            if only in corruption.name:
                levels = corrupted(corruption, folder / "good", data, folder / "bad")
                rows.append(("artifact", corruption.name, corruption.profile, ", ".join(levels) or "**survives**"))
                print(*rows[-1], sep=" | ", flush=True)
    survivors = [row for row in rows if row[3] == "**survives**"]
    if not only:
        header = ("stage", "fault", "profile", "caught by")
        summary = f"{len(rows)} faults, {len(survivors)} survive; {time.monotonic() - start:.0f} s."
        figures = {"faults": [dict(zip(header, row, strict=True)) for row in rows], "survivors": len(survivors)}
        write_results("faults", "python benchmarks/faults.py", figures, [summary, markdown_table(header, rows)])
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
