"""From a loaded supernet and a plan to a quantized model: activate, calibrate, freeze."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from eqdeploy.calibration.batch_norm import BatchNormCalibration
from eqdeploy.calibration.choice import (
    AS_GIVEN,
    Statistics,
    StatisticsChoice,
    choose_statistics,
    restore_own_statistics,
)
from eqdeploy.calibration.images import plain_batches
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.calibration.record import CalibrationRecord
from eqdeploy.data import LabelledImages
from eqdeploy.freeze.float_graph import FloatGraph
from eqdeploy.freeze.freeze import freeze_measured
from eqdeploy.freeze.ranges import search_ranges, tensors_to_calibrate
from eqdeploy.plan import DevicePlan
from eqdeploy.progress import Progress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.inputs import Inputs, batch_size
from eqdeploy.supernet.statistics import read_statistics
from eqdeploy.validation.accuracy import Classifier, torch_classifier


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen subnet.

    Attributes:
        model: Its numbers.
        samples: The values that ranges were calibrated on, by tensor name, shape (1, M).
        record: What was measured.
    """

    model: QuantizedModel
    samples: Mapping[str, Tensor]
    record: CalibrationRecord


def activate_calibrated(
    checkpoint: Checkpoint,
    subnet: SubnetConfig | None,
    images: LabelledImages,
    seed: int,
    progress: Progress,
    *,
    only: Statistics | None = None,
) -> tuple[StatisticsChoice, BatchNormCalibration]:
    """Make a subnet the active one, with the BatchNorm statistics that serve it best.

    Args:
        checkpoint: The supernet; its BatchNorm statistics are replaced.
        subnet: The subnet; None for the float network exactly as given, with the checkpoint's own statistics.
        images: Calibration images.
        seed: Seed of the augmentation.
        progress: Listener.
        only: The statistics to take without measuring, as an earlier export chose.

    Returns:
        The statistics that were chosen and why, and what estimating them measured.
    """
    supernet = checkpoint.supernet
    if subnet is None:
        supernet.deactivate()
        supernet.eval()
        restore_own_statistics(checkpoint)
        return AS_GIVEN, BatchNormCalibration(0, 0)
    with progress.stage("calibrating BatchNorm") as advance:
        choice, measured = choose_statistics(checkpoint, subnet, images, seed, only=only, advance=advance)
    supernet.activate(subnet)
    supernet.eval()
    return choice, measured


def calibrated_classifier(checkpoint: Checkpoint, subnet: SubnetConfig | None) -> Classifier:
    """A subnet, or the float network for None, as a classifier, with the BatchNorm statistics as they are now."""
    network = InferenceNetwork(checkpoint.supernet)
    network.activate(subnet)
    return torch_classifier(network.evaluate)


def measure_samples(
    checkpoint: Checkpoint, plan: DevicePlan, images: LabelledImages, progress: Progress
) -> dict[str, Tensor]:
    """Values of the tensors whose range training did not fix, of the active, calibrated subnet."""
    with progress.stage("measuring ranges", total=len(images)) as advance:

        def batches() -> Iterator[Inputs]:
            for batch in plain_batches(images, checkpoint.preprocessing):
                yield batch
                advance(batch_size(batch))

        return sample_tensors(checkpoint.supernet, batches(), tensors_to_calibrate(plan))


def freeze_active(
    checkpoint: Checkpoint, plan: DevicePlan, graph: FloatGraph, images: LabelledImages, progress: Progress
) -> Frozen:
    """Measure the ranges that training did not fix, and freeze the active, calibrated subnet."""
    samples = measure_samples(checkpoint, plan, images, progress)
    measured = search_ranges(checkpoint.supernet, plan, samples)
    record = CalibrationRecord(read_statistics(checkpoint.supernet.graph_module), measured.ranges)
    return Frozen(freeze_measured(checkpoint.supernet, plan, graph, measured), samples, record)
