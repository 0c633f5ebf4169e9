"""The level ``origin``: that the numbers of an artifact are those of the supernet that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from eqdeploy.calibration.batch_norm import BatchNormCalibration
from eqdeploy.calibration.choice import Statistics
from eqdeploy.calibration.measured import MeasuredRanges
from eqdeploy.data import LabelledImages
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import EqDeployError
from eqdeploy.freeze.float_graph import FloatGraph
from eqdeploy.freeze.freeze import freeze_measured
from eqdeploy.freeze.ranges import search_ranges
from eqdeploy.origin.checks import OriginCheck, OriginReport
from eqdeploy.origin.prove import images_to_compare, prove_numbers, prove_origin
from eqdeploy.origin.recorded import (
    compare_exactly,
    compare_recorded_ranges,
    compare_recorded_statistics,
    record_faults,
)
from eqdeploy.origin.repeated import calibration_digest, compare_repeated
from eqdeploy.origin.statistics import CalibrationEvidence, compare_statistics
from eqdeploy.pipeline.records import Records
from eqdeploy.pipeline.sources import ImageSets
from eqdeploy.pipeline.subnets import Frozen, measure_samples
from eqdeploy.plan import DevicePlan
from eqdeploy.progress import Progress
from eqdeploy.report import Level, PlanSummary
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.supernet.statistics import read_statistics, write_statistics

#: Key of the level's details under which stands what calibration measured.
_CALIBRATION = "calibration"


def prove_frozen(
    checkpoint: Checkpoint,
    plan: DevicePlan,
    frozen: Frozen,
    images: ImageSets,
    calibration: BatchNormCalibration,
    statistics: Statistics,
    seed: int,
    progress: Progress,
) -> Level:
    """Compare what was just frozen with the supernet that it was frozen from.

    Args:
        checkpoint: Its supernet is calibrated for the plan's subnet.
        plan: What was to be frozen.
        frozen: What was frozen.
        images: Calibration images, and held-out ones on which tensors are compared.
        calibration: What calibrating BatchNorm measured.
        statistics: Where the BatchNorm statistics come from.
        seed: Seed of the augmentation.
        progress: Listener.
    """
    with progress.stage("comparing with the supernet"):
        evidence = _evidence(checkpoint, frozen.samples, images.calibration, calibration, statistics, seed)
        inputs = _inputs(checkpoint, images.held_out)
        report = prove_origin(checkpoint.supernet, plan, frozen.model, evidence, inputs)
    return _level(report, calibration_digest(checkpoint.supernet, frozen.samples))


@dataclass(frozen=True, eq=False)
class Repeated:
    """Calibration done again for an artifact; the supernet holds the statistics that go with the samples.

    Attributes:
        checks: What it says about the artifact's statistics and ranges.
        evidence: What was measured.
        measured: The ranges to freeze with: the artifact's, or those found here where its record is wrong.
        digest: Of what was measured here.
    """

    checks: tuple[OriginCheck, ...]
    evidence: CalibrationEvidence
    measured: MeasuredRanges
    digest: str


def repeat_calibration(
    checkpoint: Checkpoint,
    plan: DevicePlan,
    records: Records,
    images: LabelledImages,
    calibration: BatchNormCalibration,
    statistics: Statistics,
    progress: Progress,
) -> Repeated:
    """Measure ranges again, and compare all that calibration measured with the record of the artifact.

    Args:
        checkpoint: Its supernet is calibrated again for the artifact's subnet; it is given the recorded statistics
            unless they are wrong.
        plan: What profile, network and subnet give.
        records: What the artifact says.
        images: The calibration images of the export.
        calibration: What calibrating BatchNorm measured.
        statistics: Where the BatchNorm statistics come from.
        progress: Listener.
    """
    supernet, record = checkpoint.supernet, records.calibration
    here = read_statistics(supernet.graph_module)
    samples = measure_samples(checkpoint, plan, images, progress)
    digest = calibration_digest(supernet, samples)
    same = digest == records.report.origin.details.get(_CALIBRATION)
    found = search_ranges(supernet, plan, samples)
    evidence = _evidence(checkpoint, samples, images, calibration, statistics, records.configuration.seed)
    checks = [compare_statistics(supernet, plan.subnet, evidence)]
    if faults := record_faults(record, here, found.ranges):
        checks.append(OriginCheck.of("calibration", "", faults))
        return Repeated(tuple(checks), evidence, found, digest)
    if same:
        checks.append(compare_exactly(record, here, found.ranges))
        return Repeated(tuple(checks), evidence, record.measured, digest)
    checks.append(compare_recorded_statistics(record, here, len(images)))
    if not checks[-1].passed:
        return Repeated(tuple(checks), evidence, found, digest)
    held = {name: value.reshape(here[name].shape) for name, value in record.statistics.items()}
    write_statistics(supernet.graph_module, held)
    samples = measure_samples(checkpoint, plan, images, progress)
    found = search_ranges(supernet, plan, samples)
    checks.append(compare_recorded_ranges(plan, record, found.ranges, samples))
    evidence = replace(evidence, samples=samples, recorded=record.ranges)
    return Repeated(tuple(checks), evidence, record.measured, digest)


def prove_again(
    checkpoint: Checkpoint,
    plan: DevicePlan,
    records: Records,
    repeated: Repeated,
    held_out: LabelledImages,
    progress: Progress,
) -> Level:
    """Freeze the supernet again, compare it like :func:`prove_frozen`, and the artifact's numbers with it.

    The structure is that of the artifact, which is compared with torch's graph tensor by tensor.

    Args:
        checkpoint: Its supernet is calibrated as :func:`repeat_calibration` left it.
        plan: What profile, network and subnet give.
        records: What the artifact says.
        repeated: Calibration done again.
        held_out: Images on which tensors are compared.
        progress: Listener.
    """
    same_plan = _decisions(PlanSummary.of(plan)) == _decisions(records.report.plan)
    plans = OriginCheck.of(
        "plan",
        "profile, network and subnet give the plan of the report",
        [] if same_plan else [("plan", "is not what profile, network and subnet give")],
    )
    try:
        graph = FloatGraph(ir.serde.deserialize_model(records.model.graph))
        model = freeze_measured(checkpoint.supernet, plan, graph, repeated.measured)
        with progress.stage("comparing with the supernet"):
            numbers = compare_repeated(records.model, model)
            inputs = _inputs(checkpoint, held_out)
            checks = prove_numbers(checkpoint.supernet, plan, model, repeated.evidence, inputs)
    except (EqDeployError, KeyError, ValueError) as error:
        # Names, shapes and encodings that cannot be are what this level is there to find.
        return Level.of(False, f"the supernet cannot be frozen into this artifact: {error}", {"passed": False})
    return _level(OriginReport((plans, *repeated.checks, numbers, *checks)), repeated.digest)


def _decisions(plan: PlanSummary) -> dict[str, Any]:
    """A plan without its reasons: that a form was chosen by the profile is, in the artifact, that its subnet has it."""
    document = plan.model_dump()
    for row in (*document["weights"], *document["tensors"]):
        del row["reason"]
    return document


def _evidence(
    checkpoint: Checkpoint,
    samples: Mapping[str, Tensor],
    images: LabelledImages,
    calibration: BatchNormCalibration,
    statistics: Statistics,
    seed: int,
) -> CalibrationEvidence:
    """What a subnet was calibrated with, and what that measured."""
    return CalibrationEvidence(
        images=images,
        preprocessing=checkpoint.preprocessing,
        augmentation=Augmentation() if statistics is Statistics.PLAIN else checkpoint.augmentation,
        seed=seed,
        batch_norm=calibration,
        samples=samples,
        own=checkpoint.statistics if statistics is Statistics.OWN else None,
    )


def _inputs(checkpoint: Checkpoint, held_out: LabelledImages) -> NDArray[Any]:
    """The inputs on which tensors are compared."""
    count = images_to_compare(checkpoint.supernet.network)
    return checkpoint.preprocessing.apply(held_out.spread(count).images)


def _level(report: OriginReport, digest: str) -> Level:
    return Level.of(report.passed, report.summary, {**report.to_json(), _CALIBRATION: digest})
