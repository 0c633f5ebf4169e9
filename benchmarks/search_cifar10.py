"""Mixed precision that is searched without the test images, against uniform widths on the test images."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, float_of_as_many_steps, markdown_table, write_results

from eqdeploy.cli.progress import make_progress
from eqdeploy.data.references import load_data
from eqdeploy.pipeline import search
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.profile import load_profile
from eqdeploy.progress import Progress
from eqdeploy.requests import CALIBRATION_IMAGES, SearchOptions, SearchRequest
from eqdeploy.search.measure import Measurer, calibration_tensor, split_training_images
from eqdeploy.search.measurement import SubnetMeasurement
from eqdeploy.search.space import search_space
from eqdeploy.subnet import SubnetConfig

#: Average widths of weights and activations of the curve.
CURVE = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
UNIFORM = (2, 3, 4, 5, 6)
#: Where searches with several seeds are compared with the uniform width, and by how many points they have to win.
COMPARED, GOAL = 3.0, 0.3
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Point:
    """A subnet on the curve, and what it does on the test images."""

    width: float
    seed: int | None
    costs: dict[str, float]
    measurement: SubnetMeasurement

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found = self.measurement
        return {
            "average_bits": self.width,
            "seed": self.seed,
            "accuracy": found.accuracy,
            "correct": found.correct,
            "cross_entropy": found.cross_entropy,
            "costs": self.costs,
        }


def main() -> None:
    """Search, measure on the test images, write tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("--supernet", default="cifar10-resnet20", help="name of a shipped supernet, or a checkpoint")
    parser.add_argument("--profile", default="onnxruntime-x86", help="profile with all widths")
    parser.add_argument("--predictor", type=Path, help="predictor; by default one is fitted to --measurements")
    parser.add_argument("--measurements", type=Path, help="folder of eqdeploy sample, gone on with where it exists")
    parser.add_argument("--samples", type=int, help="subnets that it has to hold")
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--name", default="search-cifar10", help="name of the result files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress = make_progress(quiet=False, verbose=False)
    mixed = {key: find(options, *key, progress) for key in wanted()}
    subnets = {(width, seed): found.subnet for (width, seed), found in mixed.items()}
    measured, uniform = measure_on_test(options, subnets, progress)
    points = [Point(width, seed, dict(mixed[width, seed].costs), measured[width, seed]) for width, seed in mixed]
    flat = [Point(float(bits), None, {}, found) for bits, found in uniform.items()]
    verdict = compare(points, flat)
    draw(RESULTS / f"{options.name}.svg", points, flat)
    command = f"python benchmarks/search_cifar10.py --data {options.data}" + "".join(
        f" --{key} {getattr(options, key)}"
        for key in ("supernet", "profile", "predictor", "measurements", "samples", "generations", "name")
        if getattr(options, key) not in (None, parser.get_default(key))
    )
    figures = {
        "images": points[0].measurement.images,
        "seeds": list(SEEDS),
        "compared": verdict,
        "mixed": [point.to_json() for point in points],
        "uniform": [point.to_json() for point in flat],
    }
    write_results(options.name, command, figures, tables(options.name, points, flat, verdict))


def wanted() -> list[tuple[float, int]]:
    """Budgets and seeds of the searches."""
    return [(width, seed) for width in CURVE for seed in (SEEDS if width == COMPARED else SEEDS[:1])]


def find(options: argparse.Namespace, width: float, seed: int, progress: Progress) -> Any:
    """Search at an average width of weights and activations; only training images are read."""
    with tempfile.TemporaryDirectory() as folder:
        request = SearchRequest(
            profile=options.profile,
            options=SearchOptions(
                budgets=(f"avg_weight_bits<={width}", f"avg_activation_bits<={width}"),
                predictor=options.predictor,
                measurements=options.measurements,
                samples=options.samples,
                generations=options.generations,
            ),
            supernet=options.supernet,
            data=options.data,
            output=Path(folder) / "search",
            workspace=RESULTS.parent.parent / "build",
            seed=seed,
        )
        return search(request, progress)


def measure_on_test(
    options: argparse.Namespace, subnets: dict[tuple[float, int], SubnetConfig], progress: Progress
) -> tuple[dict[tuple[float, int], SubnetMeasurement], dict[int, SubnetMeasurement]]:
    """Measure the chosen subnets and uniform ones on all test images, calibrated on the same training images."""
    checkpoint = load_supernet(options.supernet, None).checkpoint
    preprocessing, network = checkpoint.preprocessing, checkpoint.supernet.network
    train = load_data(options.data, split="train", preprocessing=preprocessing)
    test = load_data(options.data, split="test", preprocessing=preprocessing)
    count = min(CALIBRATION_IMAGES, len(train) - 2)
    calibration = split_training_images(train, calibration=count, images=2, seed=0).calibration
    images = calibration_tensor(calibration, preprocessing, checkpoint.augmentation, 0)
    measurer = Measurer(checkpoint.supernet, images, test, preprocessing)
    space = search_space(load_profile(options.profile), network)
    uniform = {}
    with progress.stage("measuring on the test images", total=len(subnets) + len(UNIFORM)) as advance:
        mixed = {}
        for key, subnet in subnets.items():
            mixed[key] = measurer.measure(subnet)
            advance(1)
        for bits in UNIFORM:
            choices = np.array([gene.bits.index(bits) for gene in space.genes], np.int64)
            uniform[bits] = measurer.measure(space.subnet(choices))
            advance(1)
    return mixed, uniform


def compare(points: list[Point], flat: list[Point]) -> dict[str, Any]:
    """Points of accuracy by which each seed beats the uniform width."""
    (base,) = [point.measurement.accuracy for point in flat if point.width == COMPARED]
    gains = [100 * (point.measurement.accuracy - base) for point in points if point.width == COMPARED]
    return {
        "average_bits": COMPARED,
        "uniform_accuracy": base,
        "gain_points": gains,
        "mean_gain_points": float(np.mean(gains)),
        "goal_points": GOAL,
        "reached": bool(np.mean(gains) >= GOAL),
    }


def draw(path: Path, points: list[Point], flat: list[Point]) -> None:
    """Draw both curves."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "eqdeploy", "svg.fonttype": "none"})
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, marker, rows in (
        ("searched, seed 0", "o-", [point for point in points if point.seed == SEEDS[0]]),
        ("uniform", "s--", flat),
    ):
        axes.plot([p.width for p in rows], [100 * p.measurement.accuracy for p in rows], marker, label=name)
    others = [point for point in points if point.seed != SEEDS[0]]
    axes.plot([p.width for p in others], [100 * p.measurement.accuracy for p in others], "x", label="other seeds")
    axes.set_xlabel("average bits of weights and of activations")
    axes.set_ylabel("top-1 on the test images, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def tables(name: str, points: list[Point], flat: list[Point], verdict: dict[str, Any]) -> list[str]:
    """Lay out the curve and the comparison."""
    gains = ", ".join(f"{gain:+.2f}" for gain in verdict["gain_points"])
    words = (
        f"Top-1 on all {points[0].measurement.images} test images; subnets were chosen by the predictor and by "
        f"measurement on training images only, one budget for weights and one for activations. At an average of "
        f"{COMPARED:g} bits the search gains {gains} points over uniform {COMPARED:g} bits with seeds 0, 1, 2 (mean "
        f"{verdict['mean_gain_points']:+.2f}; goal: {GOAL:+.1f}).{float_of_as_many_steps()}"
    )
    same = {point.width: point.measurement for point in flat}
    rows = [
        [
            f"{point.width:g}",
            point.seed,
            f"{point.costs['avg_weight_bits']:.3f}",
            f"{point.costs['avg_activation_bits']:.3f}",
            f"{point.measurement.accuracy:.2%}",
            f"{same[point.width].accuracy:.2%}" if point.width in same else "",
        ]
        for point in points
    ]
    rows += [
        [f"{point.width:g}", "", "", "", "", f"{point.measurement.accuracy:.2%}"]
        for point in flat
        if point.width not in CURVE
    ]
    header = ["average bits", "seed", "weights", "activations", "searched", "uniform"]
    return [words, markdown_table(header, rows), f"![Searched against uniform]({name}.svg)"]


if __name__ == "__main__":
    main()
