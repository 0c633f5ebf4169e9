"""How well the predictor predicts: sample or take a store, then fit with several splits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table, write_results
from numpy.typing import NDArray
from scipy import stats

from eqdeploy.cli.progress import make_progress
from eqdeploy.pipeline import sample
from eqdeploy.requests import SampleRequest
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.fitting import fit_predictor, fit_ridge, total_score, untrained_baseline
from eqdeploy.search.measurement import SubnetMeasurement
from eqdeploy.search.predictor import Target
from eqdeploy.search.store import MeasurementStore
from eqdeploy.subnet import SubnetConfig

Measured = list[tuple[SubnetConfig, SubnetMeasurement]]
_BASELINE = "mean of 2^-b"


def main() -> None:
    """Sample what is missing, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="folder of eqdeploy sample; made where there is none")
    parser.add_argument("--count", type=int, help="measure so many subnets; by default the store is taken as it is")
    parser.add_argument("--supernet", default="digits", help="name of a shipped supernet, or a checkpoint")
    parser.add_argument("--data", default="digits", help="labelled images")
    parser.add_argument("--images", type=int, help="training images that subnets are judged on")
    parser.add_argument("--training", type=int, default=400, help="subnets to fit to")
    parser.add_argument("--splits", type=int, default=5, help="number of splits into training and held-out subnets")
    parser.add_argument("--target", choices=[str(target) for target in Target], nargs="+", default=["cross_entropy"])
    parser.add_argument("--name", default="digits", help="end of the names of the result files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.count is not None:
        request = SampleRequest(
            options.store, options.count, supernet=options.supernet, data=options.data, images=options.images
        )
        sample(request, make_progress(quiet=False, verbose=False))
    store = MeasurementStore.open(options.store)
    measured = list(store.read().items())
    header = store.header
    figures: dict[str, Any] = {
        "supernet": header.supernet.model_dump(),
        "data": header.data.model_dump(),
        "images": header.images,
        "calibration_images": header.calibration_images,
        "subnets": len(measured),
        "training": options.training,
        "seeds": list(range(options.splits)),
        "targets": {},
    }
    tables = [
        f"{len(measured)} subnets of {header.supernet.name} on {header.images} held-back training images of "
        f"{header.data.name}; fitted to {options.training}, judged on the other {len(measured) - options.training}, "
        f"mean over {options.splits} splits (smallest and largest in brackets, no confidence interval: the splits "
        "overlap). The last two rows are about other images than those that are known: what one half of them, "
        "measured, says about the other half, and what a predictor of one half says about the other."
    ]
    for name in options.target:
        target = Target(name)
        rows = [split(measured, header.encoding, target, options.training, seed) for seed in range(options.splits)]
        summary = {method: {key: [row[method][key] for row in rows] for key in rows[0][method]} for method in rows[0]}
        figures["targets"][name] = summary
        tables.append(f"## {name.replace('_', ' ')}\n\n" + layout(summary))
    command = f"python benchmarks/search_predictor.py --store {options.store}" + "".join(
        f" --{key} {getattr(options, key)}"
        for key in ("count", "supernet", "data", "images", "training", "splits", "name")
        if getattr(options, key) not in (None, parser.get_default(key))
    )
    if options.target != parser.get_default("target"):
        command += f" --target {' '.join(options.target)}"
    write_results(f"search-predictor-{options.name}", command, figures, tables)


def split(
    measured: Measured, encoding: SubnetEncoding, target: Target, training: int, seed: int
) -> dict[str, dict[str, float]]:
    """Correlations of everything on one split."""
    order = np.random.default_rng(seed).permutation(len(measured))
    known, others = ([measured[row] for row in rows] for rows in (order[:training], order[training:]))
    subnets, measurements = [subnet for subnet, _ in others], [found for _, found in others]
    scores = [total_score(found) for found in measurements]
    losses, transformed = target.losses(scores), target.transformed(scores)
    known_subnets, known_found = [subnet for subnet, _ in known], [found for _, found in known]
    predictor = fit_predictor(encoding, known_subnets, known_found, target=target, seed=seed)
    predictions = {
        "predictor": predictor.predict(encoding.encode(subnets)).loss,
        "ridge regression on 2^-b": fit_ridge(encoding, known_subnets, known_found, subnets, target),
        _BASELINE: untrained_baseline(encoding, subnets),
    }
    rows = {
        name: correlations(values, losses, values if name == _BASELINE else target.normalized(values), transformed)
        for name, values in predictions.items()
    }
    first, second = ([found.halves[part] for found in measurements] for part in (0, 1))
    judged = target.losses(second), target.transformed(second)
    measured_half = target.losses(first)
    rows["one half, measured, for the other"] = correlations(
        measured_half, judged[0], target.transformed(first), judged[1]
    )
    halved = [SubnetMeasurement((found.halves[0], found.halves[0])) for found in known_found]
    half = fit_predictor(encoding, known_subnets, halved, target=target, seed=seed)
    predicted_half = half.predict(encoding.encode(subnets)).loss
    rows["predictor of one half, for the other"] = correlations(
        predicted_half, judged[0], target.normalized(predicted_half), judged[1]
    )
    return rows


def correlations(
    predicted: NDArray[np.float64],
    measured: NDArray[np.float64],
    transformed_prediction: NDArray[np.float64],
    transformed: NDArray[np.float64],
) -> dict[str, float]:
    """Kendall, Pearson, Spearman, and Pearson on the scale that is predicted on."""
    return {
        "kendall": float(stats.kendalltau(predicted, measured).statistic),
        "pearson": float(np.corrcoef(predicted, measured)[0, 1]),
        "pearson_transformed": float(np.corrcoef(transformed_prediction, transformed)[0, 1]),
        "spearman": float(stats.spearmanr(predicted, measured).statistic),
    }


def layout(summary: dict[str, dict[str, list[float]]]) -> str:
    """Lay out means and ranges."""
    rows = [
        [name, *(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in found.values())]
        for name, found in summary.items()
    ]
    return markdown_table(["", "Kendall tau", "Pearson", "Pearson, transformed", "Spearman"], rows)


if __name__ == "__main__":
    main()
