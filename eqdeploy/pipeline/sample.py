"""``eqdeploy sample``: measure subnets of a supernet, for a predictor to be fitted to."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import numpy as np
import torch

from eqdeploy import __version__
from eqdeploy.data import LoadOptions, load_data
from eqdeploy.data.labelled import LabelledImages
from eqdeploy.pipeline.sources import LoadedSupernet, check_classes, load_supernet
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.requests import CALIBRATION_IMAGES, SampleRequest
from eqdeploy.results import SamplingResult
from eqdeploy.search.measure import MeasurementImages, Measurer, calibration_tensor, split_training_images
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.search.store import MeasurementStore, Source, StoreHeader, space_tables
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.compiled import compiler_available
from eqdeploy.training.settings import Device, FormSampling
from eqdeploy.training.workers import ALONE, Workers

#: Images that subnets are judged on, unless there are fewer: as many as EQ-Net takes.
_IMAGES = 10_000

#: At most one of so many training images is for calibration, unless more are asked for: the more images judge, the more
#: of what they say can be predicted.
_CALIBRATION_SHARE = 6

#: Multiply-accumulate operations from which on compiling pays: ten minutes of one core, of which it saves three.
_COMPILED_FROM = 2e13


def sample(request: SampleRequest, progress: Progress, workers: Workers = ALONE) -> SamplingResult:
    """Measure the first subnets of the sampler's list that the store does not have yet.

    Args:
        request: What to measure.
        progress: Who listens.
        workers: The processes that share the work; all of them make this call.

    Returns:
        What the store holds then.

    Raises:
        CheckpointError: If the supernet cannot be loaded.
        DataError: If the data cannot be loaded, do not fit the network or are too few, or the store is damaged.
        UsageError: If the store holds something else, or the space has fewer subnets.
        OutputError: If the store cannot be written to.
        ReportedError: In all processes but the first, in the place of these.
    """
    progress = progress if workers.is_main else SilentProgress()
    with workers.together():
        with progress.stage(f"loading {request.supernet}"):
            loaded = load_supernet(request.supernet, request.model)
        checkpoint = loaded.checkpoint
        supernet = checkpoint.supernet.to(workers.device(Device.AUTO))
        network = supernet.network
        options = LoadOptions(run_code=request.run_code, progress=progress)
        data = load_data(request.data, split="train", preprocessing=checkpoint.preprocessing, options=options)
        check_classes(data, tuple(checkpoint.metadata.classes), request.data)
        images = _split(request, data)
        subnets = sample_subnets(network, request.count, seed=request.seed, forms=FormSampling(request.forms))
    device = next(supernet.parameters()).device
    work = request.count * len(images.held_back) * sum(layer.macs for layer in network.layers)
    compiled = work >= _COMPILED_FROM and device.type == "cpu" and compiler_available()
    header = _header(loaded, data, images, request.seed, compiled)

    def prepare() -> tuple[StoreHeader, list[SubnetConfig]]:
        store = MeasurementStore.create(request.output, header)
        known = store.read()
        return store.header, [subnet for subnet in subnets if subnet not in known]

    kept, missing = workers.from_main(prepare)
    store = MeasurementStore(request.output, kept)
    started = time.monotonic()
    with workers.together():
        _measure(request, loaded, images, store, missing, workers, progress)
    seconds = time.monotonic() - started
    return _summary(store, loaded, subnets, measured=len(missing), seconds=seconds)


def _split(request: SampleRequest, data: LabelledImages) -> MeasurementImages:
    """Draw the images, as many as asked for or as are good."""
    calibration = request.calibration_images or min(CALIBRATION_IMAGES, len(data) // _CALIBRATION_SHARE)
    images = request.images or min(_IMAGES, len(data) - calibration)
    return split_training_images(data, calibration=calibration, images=images, seed=request.seed)


def _header(
    loaded: LoadedSupernet, data: LabelledImages, images: MeasurementImages, seed: int, compiled: bool
) -> StoreHeader:
    """Say what is measured how."""
    return StoreHeader(
        supernet=Source(name=loaded.name, digest=loaded.digest),
        data=Source(name=data.source, digest=data.digest),
        calibration_images=len(images.calibration),
        images=len(images.held_back),
        seed=seed,
        compiled=compiled,
        **space_tables(loaded.checkpoint.supernet.network),
        versions={
            "eqdeploy": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )


def _measure(
    request: SampleRequest,
    loaded: LoadedSupernet,
    images: MeasurementImages,
    store: MeasurementStore,
    missing: Sequence[SubnetConfig],
    workers: Workers,
    progress: Progress,
) -> None:
    """Measure this process's share of the missing subnets."""
    if not missing:
        return
    checkpoint = loaded.checkpoint
    compiled = store.header.compiled and compiler_available()
    if store.header.compiled and not compiled:
        progress.note("no C++ compiler is installed: measuring takes half as long again")
    calibration = calibration_tensor(
        images.calibration, checkpoint.preprocessing, checkpoint.augmentation, request.seed
    )
    measurer = Measurer(checkpoint.supernet, calibration, images.held_back, checkpoint.preprocessing, compiled=compiled)
    with (
        store.appending(workers.rank) as appender,
        progress.stage("measuring subnets", total=len(missing)) as advance,
    ):
        for first in range(0, len(missing), workers.world_size):
            own = first + workers.rank
            if own < len(missing):
                appender.append(missing[own], measurer.measure(missing[own]))
            advance(min(workers.world_size, len(missing) - first))


def _summary(
    store: MeasurementStore,
    loaded: LoadedSupernet,
    subnets: Sequence[SubnetConfig],
    *,
    measured: int,
    seconds: float,
) -> SamplingResult:
    """Sum up what the store holds of the subnets that were asked for."""
    found = store.read()
    measurements = [found[subnet] for subnet in subnets]
    header = store.header
    return SamplingResult(
        store=store.folder,
        supernet=loaded.name,
        data=header.data.name,
        subnets=len(measurements),
        measured=measured,
        seconds=seconds,
        images=header.images,
        calibration_images=header.calibration_images,
        accuracies=tuple(measurement.accuracy for measurement in measurements),
        cross_entropies=tuple(measurement.cross_entropy for measurement in measurements),
    )
