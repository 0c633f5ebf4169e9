"""How fast subnets are searched and measured: evolution on a predictor, sampling against float and against eval."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table, write_results
from numpy.typing import NDArray

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.references import load_data
from eqdeploy.pipeline import evaluate
from eqdeploy.pipeline.sources import LoadedSupernet, load_supernet
from eqdeploy.profile import load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import EvaluateRequest
from eqdeploy.search.budgets import parse_budgets
from eqdeploy.search.costs import CostModel, Metric
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.fitting import fit_predictor
from eqdeploy.search.genetic import GeneticSettings, pareto_front, search
from eqdeploy.search.measure import MeasurementImages, Measurer, calibration_tensor, split_training_images
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.predictor import Predictor
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.search.space import SearchSpace, search_space
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.compiled import compiler_available
from eqdeploy.training.evaluate import calibrated_correct

PROFILE = "onnxruntime-x86"
GOALS = {"genetic algorithm": 5.0, "NSGA-II": 15.0, "sampling, ratio to float": 1.3}


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--supernet", default="digits", help="name of a shipped supernet, or a checkpoint")
    parser.add_argument("--data", default="digits", help="its images")
    parser.add_argument("--predictor", type=Path, help="measure with this one; by default one fitted to made-up losses")
    parser.add_argument("--images", type=int, default=1000, help="images that subnets are judged on")
    parser.add_argument("--calibration-images", type=int, default=200)
    parser.add_argument("--subnets", type=int, default=10, help="subnets to measure")
    parser.add_argument("--compiled", action="store_true", help="judge with a compiled graph")
    parser.add_argument("--name", default="search-speed", help="name of the result files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_supernet(options.supernet, None)
    space = search_space(load_profile(PROFILE), loaded.checkpoint.supernet.network)
    predictor = Predictor.load(options.predictor) if options.predictor else made_up_predictor(space)
    evolution = evolve(space, predictor)
    sampling = sample(loaded, options)
    command = "python benchmarks/search_speed.py" + "".join(
        f" --{key.replace('_', '-')}" if value is True else f" --{key.replace('_', '-')} {value}"
        for key, value in vars(options).items()
        if value not in (None, False) and value != parser.get_default(key)
    )
    figures = {"seed": 0, "genes": len(space.genes), "evolution": evolution, "sampling": sampling}
    write_results(options.name, command, figures, tables(space, evolution, sampling))


def made_up_predictor(space: SearchSpace) -> Predictor:
    """A predictor of the usual size: its speed does not depend on what it was fitted to."""
    network = space.network
    subnets = sample_subnets(network, 400)
    random = np.random.default_rng(0)
    importance = random.random(len(subnets[0].weights) + len(subnets[0].activations))

    def made_up(subnet: SubnetConfig) -> SubnetMeasurement:
        widths = np.array([form.bits for _, form in (*subnet.weights, *subnet.activations)])
        score = Score(1, 2, 0.1 + float(importance @ 4.0**-widths))
        return SubnetMeasurement((score, score))

    return fit_predictor(SubnetEncoding.of(network), subnets, [made_up(subnet) for subnet in subnets])


def evolve(space: SearchSpace, predictor: Predictor) -> dict[str, Any]:
    """Seconds of one run of each algorithm with its default settings."""
    model, predict = CostModel(space), predictor.on(space)
    budgets = parse_budgets(["avg_weight_bits<=3", "avg_activation_bits<=3"])
    settings, seeds = GeneticSettings(), space.uniform()

    def loss(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        return predict(choices).loss

    search(loss, model, budgets, seeds=seeds, settings=GeneticSettings(generations=2))  # imports are no search
    genetic, seconds = timed(lambda: search(loss, model, budgets, seeds=seeds, settings=settings))
    front, front_seconds = timed(lambda: pareto_front(loss, model, [Metric.BITOPS], seeds=seeds, settings=settings))
    return {
        "genetic algorithm": {**seconds, "evaluations": genetic.evaluations},
        "NSGA-II": {**front_seconds, "evaluations": front.evaluations, "points": len(front.choices)},
    }


def sample(loaded: LoadedSupernet, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the processor for one subnet, against the float network and against ``eqdeploy eval``."""
    checkpoint = loaded.checkpoint
    train = load_data(options.data, split="train", preprocessing=checkpoint.preprocessing)
    images = split_training_images(train, calibration=options.calibration_images, images=options.images, seed=0)
    calibration = calibration_tensor(images.calibration, checkpoint.preprocessing, checkpoint.augmentation, 0)
    compiled = options.compiled and compiler_available()
    measurer = Measurer(checkpoint.supernet, calibration, images.held_back, checkpoint.preprocessing, compiled=compiled)
    subnets = sample_subnets(checkpoint.supernet.network, 28 + options.subnets)[28:]
    supernet = checkpoint.supernet.eval()
    supernet.deactivate()

    @torch.no_grad()
    def as_float() -> int:
        return calibrated_correct(supernet, calibration, images.held_back, checkpoint.preprocessing)

    _, first = timed(lambda: measurer.measure(subnets[0]))
    as_float()
    times: dict[str, list[dict[str, float]]] = {"float": [], "subnet": []}
    for subnet in subnets:  # in turns: the machine may be busy
        times["subnet"].append(timed(lambda subnet=subnet: measurer.measure(subnet))[1])  # type: ignore[misc]
        times["float"].append(timed(as_float)[1])
    naive = naive_loop(options.supernet, images, subnets[:3])
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in times.items()
    }
    return {
        "compiled": compiled,
        "images": len(images.held_back),
        "calibration_images": len(images.calibration),
        "subnets": len(subnets),
        "first_subnet": first,
        **medians,
        "eval": naive,
        "ratio_to_float": medians["subnet"]["processor_seconds"] / medians["float"]["processor_seconds"],
        "speedup_over_eval": naive["processor_seconds"] / medians["subnet"]["processor_seconds"],
    }


def naive_loop(supernet: str, images: MeasurementImages, subnets: list[SubnetConfig]) -> dict[str, float]:
    """One subnet after the other through ``eqdeploy eval`` in this process, on the same images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_archive(folder / "train.npz", images.calibration)
        write_archive(folder / "test.npz", images.held_back)
        rows = []
        for index, subnet in enumerate(subnets):
            path = folder / f"{index}.json"
            path.write_text(json.dumps(subnet.to_json()), encoding="utf-8")
            request = EvaluateRequest(supernet=supernet, data=name, subnet=path)
            rows.append(timed(lambda request=request: evaluate(request, SilentProgress()))[1])  # type: ignore[misc]
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def write_archive(path: Path, images: LabelledImages) -> None:
    """Write images as one split of a data set."""
    np.savez(path, images=images.images, labels=images.labels)


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Call a function; seconds that passed, and seconds of the processor, which other programs do not lengthen."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, {
        "processor_seconds": time.process_time() - processor,
        "seconds": time.perf_counter() - wall,
    }


def tables(space: SearchSpace, evolution: dict[str, Any], sampling: dict[str, Any]) -> list[str]:
    """Lay out the figures."""
    first = [
        [
            name,
            f"{row['evaluations']:,}",
            f"{row['processor_seconds']:.2f}",
            f"{row['seconds']:.2f}",
            f"{GOALS[name]:.0f}",
        ]
        for name, row in evolution.items()
    ]
    second = [
        [
            label,
            f"{1 / sampling[key]['processor_seconds']:.2f}",
            f"{sampling[key]['processor_seconds']:.4f}",
            f"{sampling[key]['processor_seconds'] / sampling['float']['processor_seconds']:.2f}",
        ]
        for label, key in (
            ("float network", "float"),
            ("sampling", "subnet"),
            ("a loop over eval (with its float network)", "eval"),
        )
    ]
    how = "a compiled graph" if sampling["compiled"] else "eager torch"
    words = (
        f"Evolution over {len(space.genes)} widths with the default settings on a predictor of the default size. "
        f"Sampling: {sampling['subnets']} subnets with {how}, BatchNorm calibrated on "
        f"{sampling['calibration_images']} images, judged on {sampling['images']}; the float network is calibrated and "
        "judged on the same images. Seconds of the processor, one thread, which other programs do not lengthen much; "
        "the goals are 5 s, 15 s and a ratio of 1.3."
    )
    return [
        words,
        markdown_table(["algorithm", "evaluations", "processor seconds", "seconds passed", "goal"], first),
        markdown_table(["", "a second", "processor seconds of one", "ratio to float"], second),
    ]


if __name__ == "__main__":
    main()
