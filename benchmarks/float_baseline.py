"""A float ResNet-20 trained for as many optimizer steps as the whole CIFAR-10 supernet, beside the supernet's subnets.

The shipped supernet began from a float network of 24 epochs and then had 48 elastic epochs. "As good as float" means
little beside a network that was trained for a third of the time, so this one has the same recipe, the same data and one
cosine over all 72 epochs. An optimizer step of the supernet has three passes where one of the float network has one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, markdown_table, write_results

from eqdeploy.cli.progress import make_progress
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.trainer import train

EMBEDDED = Path(__file__).parent.parent / "eqdeploy" / "embedded"
NAME = "cifar10-resnet20"


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    options = parser.parse_args()
    first, further = (TrainingConfig.load(EMBEDDED / f"{name}.train.yaml") for name in (NAME, f"{NAME}-further"))
    before = first.float_training.epochs
    elastic = first.supernet_training.epochs + further.supernet_training.epochs
    correct, images = train_float(first, before + elastic, options)
    grid = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    figures = {
        "seed": first.seed,
        "epochs": before + elastic,
        "correct": correct,
        "images": images,
        "float_accuracy": correct / images,
        "float_accuracy_before": grid["float_accuracy"],
        "epochs_before": before,
        "elastic_epochs": elastic,
    }
    command = f"python benchmarks/float_baseline.py --data {options.data} --work runs"
    write_results("float_baseline", command, figures, tables(figures, grid["grid"]))


def train_float(base: TrainingConfig, epochs: int, options: argparse.Namespace) -> tuple[int, int]:
    """Train the float network and count its hits on the test images.

    Returns:
        Correct images and all images.
    """
    config = base.model_copy(
        update={
            "data": options.data,
            "float_training": base.float_training.model_copy(update={"epochs": epochs}),
            "supernet_training": base.supernet_training.model_copy(update={"epochs": 0, "restarts": 0}),
        }
    )
    folder = options.work / "float"
    log = folder / "training.jsonl"
    if not log.exists() or _evaluation(log) is None:
        progress = make_progress(quiet=False, verbose=False)
        train(config, folder, resume=True, float_only=True, progress=progress)
    found = _evaluation(log)
    assert found is not None
    return found


def _evaluation(log: Path) -> tuple[int, int] | None:
    """The float network's hits as the log of a finished run has them."""
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get("phase") == "float_evaluation":
            return entry["correct"], entry["images"]
    return None


def tables(figures: dict[str, Any], grid: list[dict[str, Any]]) -> list[str]:
    """Lay out the float networks and the distance of every width of the supernet from both."""
    long, short = figures["float_accuracy"], figures["float_accuracy_before"]
    rows: list[list[object]] = [
        ["float", f"{figures['epochs_before']} float epochs", f"{short:.2%}", "", ""],
        ["float", f"{figures['epochs']} float epochs", f"{long:.2%}", f"{(long - short) * 100:+.2f}", ""],
    ]
    for bits in sorted({row["bits"] for row in grid}, reverse=True):
        found = [row["correct"] / row["images"] for row in grid if row["bits"] == bits]
        worst, best = min(found), max(found)
        rows.append(
            [
                f"supernet, {bits} bits",
                f"{figures['epochs_before']} float, {figures['elastic_epochs']} elastic epochs",
                f"{worst:.2%} to {best:.2%}",
                f"{(worst - short) * 100:+.2f} to {(best - short) * 100:+.2f}",
                f"{(worst - long) * 100:+.2f} to {(best - long) * 100:+.2f}",
            ]
        )
    summary = (
        f"Top-1 on all {figures['images']} test images, BatchNorm re-estimated on augmented training images for every "
        f"network; one seed ({figures['seed']}). Worst and best of the four forms of each width."
    )
    header = [
        "network",
        "training",
        "top-1",
        "against the short float network",
        "against the float network of equal steps",
    ]
    return [summary, markdown_table(header, rows)]


if __name__ == "__main__":
    main()
