"""``eqdeploy sample``: measure subnets of a supernet, for a predictor to be fitted to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from eqdeploy.pipeline.measuring import load_training_images, measure_into, prepare_measuring
from eqdeploy.pipeline.sources import LoadedSupernet, load_supernet
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.requests import SampleRequest
from eqdeploy.results import SamplingResult
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.search.store import MeasurementStore, StoreHeader
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.settings import Device, FormSampling
from eqdeploy.training.workers import ALONE, Workers


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
            loaded = load_supernet(request.supernet, request.model, progress)
        supernet = loaded.checkpoint.supernet.to(workers.device(Device.AUTO))
        data = load_training_images(request.data, loaded, progress, run_code=request.run_code)
        measuring = prepare_measuring(
            loaded,
            data,
            subnets=request.count,
            seed=request.seed,
            images=request.images,
            calibration_images=request.calibration_images,
        )
        subnets = sample_subnets(supernet.network, request.count, seed=request.seed, forms=FormSampling(request.forms))

    def prepare() -> tuple[StoreHeader, list[SubnetConfig]]:
        store = MeasurementStore.create(request.output, measuring.header)
        known = store.read()
        return store.header, [subnet for subnet in subnets if subnet not in known]

    kept, missing = workers.from_main(prepare)
    store = MeasurementStore(request.output, kept)
    started = time.monotonic()
    with ExitStack() as opened:
        if missing:
            with workers.together():
                appender = opened.enter_context(store.appending(workers.rank))
            measure_into(appender, measuring, missing, progress, workers)
    seconds = time.monotonic() - started
    return _summary(store, loaded, subnets, measured=len(missing), seconds=seconds)


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
