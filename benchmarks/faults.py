"""Plant faults in the stages of an export and in finished artifacts, and see which level of the proof catches each.

    python benchmarks/faults.py            # everything; exit 1 if a fault survives

Every fault is planted in this process. The supernet and the structure are shared, and a small part of the digits is
used, so that one fault costs seconds. A second network has what the digits network lacks; see
:mod:`faults_network`. A fault that changes no byte of the artifact is said to change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import filecmp
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown_table, write_results
from faults_constructs import CONSTRUCTS
from faults_corruptions import Corruption, corruptions
from faults_kinds import Planted
from faults_network import FACTORY, make_supernet
from faults_planted import PLANTED

from eqdeploy.data import LoadOptions, load_images
from eqdeploy.encoding_table import write_encodings
from eqdeploy.errors import EqDeployError
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.manifest import Provenance, write_manifest
from eqdeploy.pipeline import export, validate
from eqdeploy.pipeline.export import ExportResult
from eqdeploy.pipeline.sources import LoadedSupernet, check_probes, load_supernet
from eqdeploy.progress import SilentProgress
from eqdeploy.report import ArtifactReport, LevelStatus, Verdict, read_report
from eqdeploy.requests import ExportRequest, ValidateRequest

_IMAGES = 160
_PARITY_IMAGES = 8
_SURVIVES = "**survives**"

#: Stage, fault, network, profile, and who notices.
Row = tuple[str, str, str, str, str]


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while."""
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


@dataclass(frozen=True, eq=False)
class Network:
    """A network that faults are planted in.

    Attributes:
        supernet: Name or path of its supernet.
        model: Factory of the float model, None where the supernet names it.
        data: Its images.
        good: Exports without a fault, by profile.
    """

    supernet: str
    model: str | None
    data: Path
    good: dict[str, ExportResult] = field(default_factory=dict)

    def request(self, profile: str, output: Path) -> ExportRequest:
        """A small export."""
        return ExportRequest(
            profiles=(profile,),
            supernet=self.supernet,
            model=self.model,
            data=str(self.data),
            output=output,
            force=True,
            calibration_images=_IMAGES,
            parity_images=_PARITY_IMAGES,
        )

    def without_fault(self, profile: str, folder: Path) -> ExportResult:
        """The export that a faulty one is compared with."""
        if profile not in self.good:
            (self.good[profile],) = export.export_profiles(self.request(profile, folder), SilentProgress())
            assert self.good[profile].report.verdict is Verdict.VALID, self.good[profile].report.failure()
        return self.good[profile]


@contextlib.contextmanager
def sharing(networks: Iterable[Network]) -> Iterator[None]:
    """Load each supernet and export each structure once; every export gets a copy of its own, with its probes tried."""
    loaded = {network.supernet: load_supernet(network.supernet, network.model) for network in networks}
    graphs = {name: export.export_float_graph(copy.deepcopy(held.checkpoint.supernet)) for name, held in loaded.items()}
    layers = {tuple(held.checkpoint.supernet.network.layer): name for name, held in loaded.items()}

    def copied(reference: str, *_: Any) -> LoadedSupernet:
        held = copy.deepcopy(loaded[reference])
        check_probes(held.checkpoint, where=reference)
        return held

    with (
        replaced(export, "load_supernet", copied),
        replaced(validate, "load_supernet", copied),
        replaced(export, "export_float_graph", lambda supernet: graphs[layers[tuple(supernet.network.layer)]]),
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


def planted(fault: Planted, network: Network, folder: Path) -> list[str]:
    """Export with a fault, and say who notices; a fault that changes nothing is none."""
    good = network.without_fault(fault.profile, folder / "good" / fault.network)
    with contextlib.ExitStack() as stack:
        for owner, attribute, make in ((fault.owner, fault.attribute, fault.make), *fault.also):
            stack.enter_context(replaced(owner, attribute, make(getattr(owner, attribute))))
        found: list[ExportResult] = []

        def run() -> ArtifactReport:
            found.extend(export.export_profiles(network.request(fault.profile, folder / "planted"), SilentProgress()))
            return found[0].report

        levels = caught_by(run)
    if levels or not found:
        return levels
    same = all(
        filecmp.cmp(good.directory / name, found[0].directory / name, shallow=False)
        for name in ("model.onnx", "report.json")
    )
    return ["changes nothing"] if same else _told(found[0].report, good.report)


def _told(report: ArtifactReport, good: ArtifactReport) -> list[str]:
    """What a valid report says that one without the fault does not."""
    assert report.calibration is not None
    assert good.calibration is not None
    said = (*report.calibration.findings, *report.notes)
    if good.parity.details["verdict"] == "identical" and report.parity.details["verdict"] == "explained":
        said = (*said, report.parity.summary)
    return [f"told: {text[:60]}" for text in said if text not in (*good.calibration.findings, *good.notes)]


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
    parser.add_argument("--only", default="", help="faults whose 'network: name' holds this text; writes no results")
    only = parser.parse_args().only
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("constructs", "good", "planted", "bad"):
            (folder / part).mkdir()
        supernet, images = make_supernet(folder / "constructs", _IMAGES)
        networks = {
            "digits": Network("digits", None, small_data(folder)),
            "constructs": Network(str(supernet), FACTORY, images),
        }
        with sharing(networks.values()):
            rows = [*_planted_rows(networks, folder, only), *_corrupted_rows(networks["digits"], folder, only)]
    survivors = [row for row in rows if row[-1] == _SURVIVES]
    if not only:
        header = ("stage", "fault", "network", "profile", "caught by")
        summary = f"{len(rows)} faults, {len(survivors)} survive; {time.monotonic() - start:.0f} s."
        figures = {"faults": [dict(zip(header, row, strict=True)) for row in rows], "survivors": len(survivors)}
        write_results("faults", "python benchmarks/faults.py", figures, [summary, markdown_table(header, rows)])
    return 1 if survivors else 0


def _planted_rows(networks: Mapping[str, Network], folder: Path, only: str) -> Iterator[Row]:
    for fault in (*PLANTED, *CONSTRUCTS):
        if only in f"{fault.network}: {fault.name}":
            levels = planted(fault, networks[fault.network], folder)
            yield _row(fault.stage, fault.name, fault.network, fault.profile, levels)


def _corrupted_rows(network: Network, folder: Path, only: str) -> Iterator[Row]:
    for corruption in corruptions():
        if only in f"digits: {corruption.name}":
            network.without_fault(corruption.profile, folder / "good" / "digits")
            levels = corrupted(corruption, folder / "good" / "digits", network.data, folder / "bad")
            yield _row("artifact", corruption.name, "digits", corruption.profile, levels)


def _row(stage: str, name: str, network: str, profile: str, levels: list[str]) -> Row:
    row = (stage, name, network, profile, ", ".join(levels) or _SURVIVES)
    print(*row, sep=" | ", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
