"""What a subnet's BatchNorm statistics and ranges rest on: looked at before, recorded after."""

from __future__ import annotations

from eqdeploy.calibration.choice import StatisticsChoice
from eqdeploy.calibration.examination import examine
from eqdeploy.errors import DataError
from eqdeploy.pipeline.sources import ImageSets, LoadedSupernet
from eqdeploy.progress import Progress
from eqdeploy.report import CalibrationSummary


def examine_calibration(
    loaded: LoadedSupernet, images: ImageSets, *, strict: bool, progress: Progress
) -> tuple[str, ...]:
    """Compare calibration images with those that a supernet was trained on, and tell every difference.

    Args:
        loaded: The supernet.
        images: Whose calibration images are looked at.
        strict: Whether to refuse images that differ.
        progress: Who is told.

    Returns:
        One sentence for each finding.

    Raises:
        DataError: If the images differ and ``strict`` is set.
    """
    with progress.stage("looking at the calibration images"):
        findings = examine(loaded.checkpoint, images.calibration)
    if findings and strict:
        raise DataError(
            f"the calibration images do not look like training images: {'; '.join(findings)}",
            where=images.calibration.source,
            hint="give images stored as those of training were, of all classes; or leave out --strict",
        )
    for finding in findings:
        progress.note(f"the calibration images do not look like training images: {finding}")
    return findings


def calibration_summary(
    choice: StatisticsChoice, images: ImageSets, probes: str, findings: tuple[str, ...]
) -> CalibrationSummary:
    """The part of a report on calibration."""
    return CalibrationSummary(
        images=len(images.calibration),
        float_statistics="own",
        statistics=choice.chosen.value,
        distances={source.value: distance for source, distance in choice.distances},
        reason=choice.reason,
        probes=probes,
        findings=findings,
    )
