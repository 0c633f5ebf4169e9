"""What WDR and guidance are worth (EQ-Net, Table 3 and Figure 3), on a part of CIFAR-10 and with few epochs.

Every variant starts from the same float weights and is trained with several seeds; the seed decides images, subnets and
augmentation alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import markdown_table, write_results
from images import write_subset

from eqdeploy.cli.progress import make_progress
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.run_files import RunFiles
from eqdeploy.training.settings import DistillationSettings, DistributionSettings, FormSampling, Guidance
from eqdeploy.training.trainer import train

CONFIGURATION = Path(__file__).parent.parent / "eqdeploy" / "embedded" / "cifar10-resnet20.train.yaml"
BITS = (2, 4, 8)
_LABELS = DistillationSettings(guidance=Guidance.LABELS)
#: What each variant changes in the full method.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "full method": {},
    "WDR off": {"weight_distribution": DistributionSettings(kurtosis_weight=0.0, skewness_weight=0.0)},
    "WDR: kurtosis only": {"weight_distribution": DistributionSettings(skewness_weight=0.0)},
    "WDR: skewness only": {"weight_distribution": DistributionSettings(kurtosis_weight=0.0)},
    "guidance off: labels": {"distillation": _LABELS},
    "guidance off: smoothed labels": {"distillation": _LABELS, "supernet_training": {"label_smoothing": 0.1}},
    "guidance by the float network": {"distillation": DistillationSettings(guidance=Guidance.FLOAT)},
    "one form per network": {"sampling": FormSampling.PER_NETWORK},
}

#: Those of the paper's tables. The others are asked for by name.
DEFAULT_VARIANTS = tuple(VARIANTS)[:6]


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="float weights to start from")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; unfinished ones are resumed")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--held-out", type=int, default=10_000, help="held-out images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT_VARIANTS, metavar="NAME")
    options = parser.parse_args()
    base = TrainingConfig.load(CONFIGURATION)
    data = write_subset(
        options.data,
        base.preprocessing.to_preprocessing(),
        options.work / "images",
        train=options.images,
        test=options.held_out,
    )
    # Seeds outside: after every seed there is one figure for each variant.
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    for seed in options.seeds:
        for name in options.variants:
            changes = VARIANTS[name]
            folder = options.work / f"{name.replace(' ', '-').replace(':', '')}-{seed}"
            found[name].append(accuracies(configuration(base, data, seed, changes, options), folder))
    write(found, options)


def configuration(
    base: TrainingConfig, data: Path, seed: int, changes: Mapping[str, Any], options: argparse.Namespace
) -> TrainingConfig:
    """The configuration of one run."""
    training = base.supernet_training.model_copy(
        update={"epochs": options.epochs, "restarts": 0, **changes.get("supernet_training", {})}
    )
    return base.model_copy(
        update={
            **changes,
            "data": str(data),
            "seed": seed,
            "space": base.space.model_copy(update={"bits": BITS}),
            "model": base.model.model_copy(update={"weights": str(options.weights)}),
            "float_training": base.float_training.model_copy(update={"epochs": 0}),
            "supernet_training": training,
        }
    )


def accuracies(config: TrainingConfig, folder: Path) -> dict[str, float]:
    """Mean accuracy over the four forms of each width, from a finished run or from a new one."""
    files = RunFiles.of(folder)
    result = files.log.with_name("result.json")
    if not result.exists():
        progress = make_progress(quiet=False, verbose=False)
        progress.note(folder.name)
        trained = train(config, folder, resume=True, progress=progress)
        assert trained.evaluation is not None
        rows = trained.evaluation.rows
        figures = {str(bits): mean(row.accuracy for row in rows if row.bits == bits) for bits in BITS}
        result.write_text(json.dumps({**figures, "all": mean(figures.values())}), encoding="utf-8")
    read: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return read


def write(found: Mapping[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Write means and spreads."""
    columns = [*(str(bits) for bits in BITS), "all"]
    rows = []
    for name, runs in found.items():
        cells = []
        for column in columns:
            values = [run[column] * 100 for run in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{mean(values):.2f} ± {spread:.2f}")
        rows.append([name, *cells])
    summary = (
        f"Top-1 in percent on {options.held_out} test images, mean and standard deviation over seeds "
        f"{', '.join(map(str, options.seeds))}; each figure is the mean over the four forms of a width. "
        f"{options.images} training images, {options.epochs} epochs, bits {', '.join(map(str, BITS))}; all from the "
        "same float weights."
    )
    write_results(
        "ablations",
        f"python benchmarks/ablations.py --data {options.data} --weights float.safetensors --work runs",
        {"seeds": options.seeds, "images": options.images, "epochs": options.epochs, "accuracy": dict(found)},
        [summary, markdown_table(["", "2 bits", "4 bits", "8 bits", "mean of 2, 4, 8"], rows)],
    )


if __name__ == "__main__":
    main()
