"""``eqdeploy fit``: a predictor of what subnets lose, and how far to trust it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eqdeploy import __version__
from eqdeploy.errors import DataError, OutputError, UsageError
from eqdeploy.progress import Progress
from eqdeploy.requests import FitRequest
from eqdeploy.results import FitResult, FitRow
from eqdeploy.search.agreement import agreement
from eqdeploy.search.dependencies import require
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.fitting import (
    fit_predictor,
    fit_ridge,
    required_subnets,
    total_score,
    untrained_baseline,
)
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.predictor import Scalar, Target
from eqdeploy.search.scatter import draw_scatter
from eqdeploy.search.store import HEADER_FILE, MeasurementStore, StoreHeader
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.batches import seeded_generator

#: Unless told otherwise, one of so many subnets is held out.
_HELD_OUT_SHARE = 3

#: Fewest held-out subnets: with less, correlations say nothing.
_FEWEST_HELD_OUT = 10

#: Purpose of random numbers; see :func:`eqdeploy.training.batches.derive_seed`.
_SPLIT = 2

Floats = NDArray[np.float64]
_Measured = Sequence[tuple[SubnetConfig, SubnetMeasurement]]


def fit(request: FitRequest, progress: Progress) -> FitResult:
    """Fit a predictor, and judge it on subnets that it was not fitted to.

    The figures are of a predictor that was fitted to the others only; the file holds one that was fitted to all.

    Raises:
        DataError: If there are no measurements or too few, or they are damaged or all the same.
        UsageError: If fewer than ten or all subnets are to be held out.
        OutputError: If a file exists already or cannot be written.
        MissingDependencyError: If scipy or matplotlib are not installed.
    """
    picture = request.output.with_suffix(".png")
    _check_output(request, picture)
    require("scipy.stats")
    require("matplotlib.figure")
    target = Target(request.target)
    store = MeasurementStore.open(request.store)
    header, encoding = store.header, store.header.encoding
    measured = list(store.read().items())
    training, held_out = _split(measured, encoding, request)
    with progress.stage("fitting the predictor to a part"):
        predictor = fit_predictor(encoding, *_columns(training), target=target, seed=request.seed)
    subnets, measurements = _columns(held_out)
    predictions = {
        "predictor": predictor.predict(encoding.encode(subnets)).loss,
        "ridge regression on 2^-b": fit_ridge(encoding, *_columns(training), subnets, target),
        "mean of 2^-b, not fitted": untrained_baseline(encoding, subnets),
    }
    with progress.stage("correlating"):
        rows = _rows(predictions, measurements, target, request.seed)
    losses = target.losses([total_score(measurement) for measurement in measurements])
    with progress.stage("fitting the predictor to all"):
        whole = fit_predictor(
            encoding,
            *_columns(measured),
            target=target,
            seed=request.seed,
            provenance=_provenance(header, measured, rows[0], request.seed),
        )
    whole.save(request.output)
    draw_scatter(picture, predictions["predictor"], losses, target, rows[0].agreement)
    return FitResult(
        predictor=request.output,
        picture=picture,
        target=target.value,
        supernet=header.supernet.name,
        training=len(training),
        held_out=len(held_out),
        rows=rows,
    )


def _check_output(request: FitRequest, picture: Path) -> None:
    """Refuse to overwrite, before anything is computed."""
    if request.output == picture:
        raise UsageError("the picture has this name", where="--output", hint="name a .safetensors file")
    for path in (request.output, picture):
        if path.is_dir():
            raise OutputError("is a folder, not a file", where=str(path))
        if path.exists() and not request.force:
            raise OutputError("exists already", where=str(path), hint="replace it with --force")


def _split(measured: _Measured, encoding: SubnetEncoding, request: FitRequest) -> tuple[_Measured, _Measured]:
    """Divide the subnets by seed into those to fit to and those to judge on."""
    try:
        features = encoding.encode(subnet for subnet, _ in measured)
    except UsageError as error:
        header = request.store / HEADER_FILE
        raise DataError(f"the columns are not those of the subnets: {error.message}", where=str(header)) from error
    needed = required_subnets(encoding.columns, features) if measured else 40
    count = len(measured)
    held_out = count // _HELD_OUT_SHARE if request.held_out is None else request.held_out
    if held_out < _FEWEST_HELD_OUT and request.held_out is not None:
        raise UsageError(f"{held_out} subnets held out", where="--held-out", hint=f"at least {_FEWEST_HELD_OUT}")
    if count - held_out < needed or held_out < _FEWEST_HELD_OUT:
        if request.held_out is None:
            total = math.ceil(needed * _HELD_OUT_SHARE / (_HELD_OUT_SHARE - 1))
        else:
            total = needed + held_out
        raise DataError(
            f"{count} subnets are measured, the predictor needs {total}: {needed} to fit to, the others to judge it",
            where=str(request.store),
            hint=f"eqdeploy sample --count {total}",
        )
    order = torch.randperm(count, generator=seeded_generator(request.seed, _SPLIT)).tolist()
    return [measured[index] for index in order[held_out:]], [measured[index] for index in order[:held_out]]


def _columns(measured: _Measured) -> tuple[list[SubnetConfig], list[SubnetMeasurement]]:
    """Subnets and measurements apart."""
    return [subnet for subnet, _ in measured], [measurement for _, measurement in measured]


def _rows(
    predictions: dict[str, Floats], measurements: Sequence[SubnetMeasurement], target: Target, seed: int
) -> tuple[FitRow, ...]:
    """How well each predicts, and how well one half of the images predicts the other."""
    scores = [total_score(measurement) for measurement in measurements]
    measured, normalized = target.losses(scores), target.transformed(scores)
    rows = []
    for name, predicted in predictions.items():
        # What is not fitted is no loss: it has no other scale.
        other = target.normalized(predicted) if name != "mean of 2^-b, not fitted" else predicted
        rows.append(
            FitRow(name, agreement(predicted, measured, seed=seed), agreement(other, normalized, seed=seed).pearson)
        )
    halves: list[list[Score]] = [[measurement.halves[part] for measurement in measurements] for part in (0, 1)]
    first, second = halves
    rows.append(
        FitRow(
            "one half of the images, measured, for the other",
            agreement(target.losses(first), target.losses(second), seed=seed),
            agreement(target.transformed(first), target.transformed(second), seed=seed).pearson,
        )
    )
    return tuple(rows)


def measurements_digest(measured: _Measured) -> str:
    """SHA-256 of everything that was measured, in any order."""
    lines = sorted(f"{subnet.digest} {measurement.halves}" for subnet, measurement in measured)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def predictor_subnets(encoding: SubnetEncoding, subnets: Sequence[SubnetConfig]) -> int:
    """Fewest measured subnets from which :func:`fit` makes a predictor, those it is judged on included.

    Args:
        encoding: Encodes them.
        subnets: The first ones of the list that is measured.
    """
    needed = required_subnets(encoding.columns, encoding.encode(subnets)) if subnets else 40
    return math.ceil(needed * _HELD_OUT_SHARE / (_HELD_OUT_SHARE - 1))


def _provenance(header: StoreHeader, measured: _Measured, row: FitRow, seed: int) -> dict[str, Scalar]:
    """What the predictor's file says about where it comes from."""
    return {
        "supernet": header.supernet.name,
        "supernet_digest": header.supernet.digest,
        "data": header.data.name,
        "data_digest": header.data.digest,
        "subnets": len(measured),
        "measurements_digest": measurements_digest(measured),
        "images": header.images,
        "calibration_images": header.calibration_images,
        "seed": seed,
        "held_out_kendall": row.agreement.kendall.value,
        "held_out_pearson": row.agreement.pearson.value,
        "eqdeploy": __version__,
        "torch": torch.__version__,
    }
