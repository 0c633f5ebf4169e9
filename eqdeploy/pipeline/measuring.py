"""Measure subnets on training images: what ``eqdeploy sample`` and ``eqdeploy search`` share."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eqdeploy import __version__
from eqdeploy.data import LoadOptions, load_data
from eqdeploy.data.inputs import InputPreprocessing
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.errors import EqDeployError
from eqdeploy.pipeline.sources import LoadedSupernet, check_classes
from eqdeploy.progress import Progress
from eqdeploy.requests import CALIBRATION_IMAGES
from eqdeploy.search.measure import MeasurementImages, Measurer, calibration_tensor, split_training_images
from eqdeploy.search.store import Appender, Source, StoreHeader, space_tables
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.compiled import compiler_available
from eqdeploy.training.workers import ALONE, Workers

#: Images that subnets are judged on, unless there are fewer: as many as EQ-Net takes.
_IMAGES = 10_000

#: At most one of so many training images is for calibration, unless more are asked for: the more images judge, the more
#: of what they say can be predicted.
_CALIBRATION_SHARE = 6

#: Subnets that each process measures before it hears of the others.
_TOGETHER = 4

#: Images by which it is told whether the test images are the training images.
_COMPARED = 64

#: Multiply-accumulate operations from which on compiling pays: ten minutes of one core, of which it saves three.
_COMPILED_FROM = 2e13


@dataclass(frozen=True, eq=False)
class Measuring:
    """What subnets are measured with.

    Attributes:
        loaded: The supernet.
        images: The images.
        header: Says what is measured how; its seed also is that of the augmentation.
    """

    loaded: LoadedSupernet
    images: MeasurementImages
    header: StoreHeader


def load_training_images(
    reference: str, loaded: LoadedSupernet, progress: Progress, *, run_code: bool
) -> LabelledImages:
    """Load the training images of a data set.

    Its test images are only looked at to tell whether they are others: a single archive has but one set of images.

    Raises:
        DataError: If they are missing, do not fit the network, or their classes are not the supernet's.
        UsageError: If a function may not be called, does not exist or fails.
    """
    checkpoint = loaded.checkpoint
    options = LoadOptions(run_code=run_code, progress=progress)
    data = load_data(reference, split="train", preprocessing=checkpoint.preprocessing, options=options)
    check_classes(data, tuple(checkpoint.metadata.classes), reference)
    if _is_every_split(data, reference, checkpoint.preprocessing, options):
        progress.note(
            f"{reference} has no test images of its own: subnets are chosen by the images that accuracies are told of"
        )
    return data


def _is_every_split(
    data: LabelledImages, reference: str, preprocessing: InputPreprocessing, options: LoadOptions
) -> bool:
    """Whether the test images of a data set are its training images."""
    try:
        test = load_data(reference, split="test", preprocessing=preprocessing, limit=_COMPARED, options=options)
    except EqDeployError:
        return False  # there are none, or none that can be read: whoever needs them will say so
    first = spread_indices(len(data), _COMPARED)
    return np.array_equal(data.images[first], test.images) and np.array_equal(data.labels[first], test.labels)


def prepare_measuring(
    loaded: LoadedSupernet,
    data: LabelledImages,
    *,
    subnets: int,
    seed: int,
    images: int | None = None,
    calibration_images: int | None = None,
) -> Measuring:
    """Draw the images, and say what will be measured how.

    Args:
        loaded: The supernet, on the device that measures.
        data: The training images.
        subnets: About how many will be measured: whether it pays to compile.
        seed: Seed of the images and of the augmentation.
        images: Images that subnets are judged on; None for 10,000 or all that there are.
        calibration_images: Images that BatchNorm is calibrated on; None for 1,024 or a sixth of all.

    Raises:
        DataError: If the images are unlabelled or too few.
    """
    calibration = calibration_images or min(CALIBRATION_IMAGES, len(data) // _CALIBRATION_SHARE)
    parts = split_training_images(
        data, calibration=calibration, images=images or min(_IMAGES, len(data) - calibration), seed=seed
    )
    supernet = loaded.checkpoint.supernet
    network = supernet.network
    work = subnets * len(parts.held_back) * sum(layer.macs for layer in network.layers)
    on_processor = next(supernet.parameters()).device.type == "cpu"
    header = StoreHeader(
        supernet=Source(name=loaded.name, digest=loaded.digest),
        data=Source(name=data.source, digest=data.digest),
        calibration_images=len(parts.calibration),
        images=len(parts.held_back),
        seed=seed,
        compiled=work >= _COMPILED_FROM and on_processor and compiler_available(),
        **space_tables(network),
        versions=program_versions(),
    )
    return Measuring(loaded, parts, header)


def program_versions() -> dict[str, str]:
    """Versions of the programs that can change what is measured and found."""
    return {
        "eqdeploy": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def measure_into(
    appender: Appender,
    measuring: Measuring,
    missing: Sequence[SubnetConfig],
    progress: Progress,
    workers: Workers = ALONE,
    *,
    stage: str = "measuring subnets",
) -> None:
    """Measure this process's share of subnets, each written as soon as it is measured.

    The processes meet every few subnets, so that an error in one soon ends all.

    Args:
        appender: Where the measurements go.
        measuring: What to measure with.
        missing: The subnets, the same in all processes.
        progress: Who listens.
        workers: The processes that share the work.
        stage: What is announced.

    Raises:
        DataError: If the cross-entropy of an image is not finite.
        OutputError: If the measurements cannot be written.
    """
    checkpoint = measuring.loaded.checkpoint
    wanted = appender.store.header.compiled
    compiled = wanted and compiler_available()
    if wanted and not compiled:
        progress.note("no C++ compiler is installed: measuring takes half as long again")
    if measuring.header.compiled and not wanted:
        progress.note(
            f"{appender.store.folder} was begun without a compiled graph and goes on so; a new folder takes less time"
        )
    images = measuring.images
    with workers.together():
        calibration = calibration_tensor(
            images.calibration, checkpoint.preprocessing, checkpoint.augmentation, measuring.header.seed
        )
        measurer = Measurer(
            checkpoint.supernet, calibration, images.held_back, checkpoint.preprocessing, compiled=compiled
        )
    together = _TOGETHER * workers.world_size
    with progress.stage(stage, total=len(missing)) as advance:
        for first in range(0, len(missing), together):
            part = missing[first : first + together]
            with workers.together():
                for own in range(workers.rank, len(part), workers.world_size):
                    appender.append(part[own], measurer.measure(part[own]))
                    advance(min(workers.world_size, len(part) - own))
