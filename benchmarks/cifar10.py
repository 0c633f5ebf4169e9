"""Measure every uniform form of the shipped CIFAR-10 supernet on the full test set, beside its float network."""

from __future__ import annotations

import argparse
import itertools

import torch
from common import float_of_as_many_steps, markdown_table, write_results

from eqdeploy.cli.progress import make_progress
from eqdeploy.data.references import load_data
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.training.batches import augmented_images, seeded_generator
from eqdeploy.training.evaluate import Evaluation, evaluate_grid

#: Largest loss against the float network, in points, that a width may have on every form.
GOALS = {8: 0.0, 4: 0.4, 3: 1.2}
#: Largest distance of 2 bits from 8 bits of the same form, in points.
GOAL_OF_TWO_BITS = 3.5
NAME = "cifar10-resnet20"
#: Augmented training images that BatchNorm is calibrated on.
CALIBRATION = 2000


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--supernet", default=NAME, help="name of a shipped supernet, or a checkpoint")
    parser.add_argument("--name", default=NAME, help="name of the result files")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = load_supernet(options.supernet, None).checkpoint
    grid = measure(checkpoint, options.data)
    provenance = checkpoint.metadata.provenance
    figures = {
        "float_accuracy": provenance["float_accuracy"],
        "supernet_weights_in_float": grid.float_accuracy,
        "images": grid.images,
        "provenance": dict(provenance),
        "grid": [row.to_json() for row in grid.rows],
    }
    write_results(
        options.name,
        command(options),
        figures,
        tables(grid, float(provenance["float_accuracy"]), checkpoint.supernet.network.space),
    )


def command(options: argparse.Namespace) -> str:
    """What repeats this measurement."""
    text = f"python benchmarks/cifar10.py --data {options.data}"
    if options.name != NAME:
        text += f" --supernet CHECKPOINT --name {options.name}"
    return text


def measure(checkpoint: Checkpoint, data: str) -> Evaluation:
    """Accuracy of every uniform form on all test images."""
    preprocessing = checkpoint.preprocessing
    train = load_data(data, split="train", preprocessing=preprocessing)
    test = load_data(data, split="test", preprocessing=preprocessing)
    images = augmented_images(
        train, preprocessing, checkpoint.augmentation, count=CALIBRATION, generator=seeded_generator(0)
    )
    progress = make_progress(quiet=False, verbose=False)
    total = 1 + len(checkpoint.supernet.network.space.weight_forms())
    with progress.stage("evaluating all forms", total=total) as advance:
        return evaluate_grid(
            checkpoint.supernet, calibration=images, data=test, preprocessing=preprocessing, advance=advance
        )


def tables(grid: Evaluation, float_accuracy: float, space: ElasticSpace) -> list[str]:
    """Lay out the grid and its distance from the goals."""
    forms = list(itertools.product(space.granularities, space.symmetries))
    accuracy = {(row.bits, row.granularity, row.symmetry): row.accuracy for row in grid.rows}
    rows = []
    for bits in reversed(space.bits):
        found = [accuracy[bits, *form] for form in forms]
        rows.append([bits, *(f"{value:.2%}" for value in found), _verdict(bits, forms, accuracy, float_accuracy)])
    summary = (
        f"Top-1 on all {grid.images} test images, weights and activations at the same width, first and last layer 8 "
        f"bits, BatchNorm calibrated for each form on {CALIBRATION} augmented training images. Float network before "
        f"quantization-aware training: {float_accuracy:.2%}; the supernet's weights without quantization: "
        f"{grid.float_accuracy:.2%}.{float_of_as_many_steps()}"
    )
    header = ["W = A bits", *(f"{granularity} {symmetry}" for granularity, symmetry in forms), "goal"]
    return [summary, markdown_table(header, rows)]


def _verdict(
    bits: int,
    forms: list[tuple[object, object]],
    accuracy: dict[tuple[object, ...], float],
    float_accuracy: float,
) -> str:
    """Whether a width reaches its goal on every form, and by how much the worst form misses or beats it."""
    if bits in GOALS:
        limit = float_accuracy - GOALS[bits] / 100
        margin = min(accuracy[bits, *form] for form in forms) - limit
        text = f"at least {limit:.2%}"
    elif bits == 2:
        margin = GOAL_OF_TWO_BITS / 100 - max(accuracy[8, *form] - accuracy[2, *form] for form in forms)
        text = f"at most {GOAL_OF_TWO_BITS} points under 8 bits"
    else:
        return ""
    return f"{text}: {'reached' if margin >= 0 else 'missed'} by {abs(margin) * 100:.2f} points"


if __name__ == "__main__":
    main()
