"""Static networks of one form each, trained for one cycle of the CIFAR-10 supernet's schedule, beside its subnets.

All start from the same float weights. A static network spends every step on its one form, without WDR and guidance
(that is LSQ); the supernet shares its steps among all forms. It is shown after its first cycle, which had as many
optimizer steps as each static network, and as it is shipped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, float_of_as_many_steps, markdown_table, write_results

from eqdeploy.cli.progress import make_progress
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.run_files import RunFiles
from eqdeploy.training.settings import DistillationSettings, DistributionSettings, Guidance, StaticSettings
from eqdeploy.training.trainer import train

CONFIGURATION = Path(__file__).parent.parent / "eqdeploy" / "embedded" / "cifar10-resnet20.train.yaml"
GRANULARITY, SYMMETRY = Granularity.PER_TENSOR, Symmetry.SYMMETRIC


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="float weights that the supernet started from")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; unfinished ones are resumed")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    base = TrainingConfig.load(CONFIGURATION)
    static = {bits: accuracy_of(base, bits, options) for bits in options.bits}
    cycle = shared_accuracies("cifar10-resnet20-first-cycle")
    shipped = shared_accuracies("cifar10-resnet20")
    rows = [
        [
            bits,
            *(f"{value:.2%}" for value in (found, cycle[bits], shipped[bits])),
            f"{(cycle[bits] - found) * 100:+.2f}",
        ]
        for bits, found in static.items()
    ]
    settings = configuration(base, 2, options).supernet_training
    summary = (
        f"Top-1 on all test images, {GRANULARITY} {SYMMETRY}, first and last layer 8 bits; {settings.epochs} epochs of "
        f"batch {settings.batch_size} each, one seed. Each static network has had as many optimizer steps, all on its "
        "one form, as the supernet in its first cycle."
        f"{float_of_as_many_steps()}"
    )
    header = ["W = A bits", "static network", "supernet after one cycle", "shipped", "difference after one cycle"]
    write_results(
        "static_networks",
        f"python benchmarks/static_networks.py --data {options.data} --weights float.safetensors --work runs",
        {
            "seed": base.seed,
            "static": static,
            "supernet": {bits: cycle[bits] for bits in static},
            "shipped": {bits: shipped[bits] for bits in static},
        },
        [summary, markdown_table(header, rows)],
    )


def shared_accuracies(results: str) -> dict[int, float]:
    """Accuracies of a supernet's subnets of the form of the static networks, from the results of ``cifar10.py``."""
    grid = json.loads((RESULTS / f"{results}.json").read_text(encoding="utf-8"))["grid"]
    return {
        row["bits"]: row["correct"] / row["images"]
        for row in grid
        if (row["granularity"], row["symmetry"]) == (GRANULARITY, SYMMETRY)
    }


def accuracy_of(base: TrainingConfig, bits: int, options: argparse.Namespace) -> float:
    """Accuracy of one static network, from a finished run or from a new one."""
    files = RunFiles.of(options.work / f"static-{bits}")
    result = files.log.with_name("result.json")
    if not result.exists():
        trained = train(
            configuration(base, bits, options),
            files.log.parent,
            resume=True,
            progress=make_progress(quiet=False, verbose=False),
        )
        assert trained.evaluation is not None
        (row,) = trained.evaluation.rows
        result.write_text(json.dumps({"accuracy": row.accuracy}), encoding="utf-8")
    found: float = json.loads(result.read_text(encoding="utf-8"))["accuracy"]
    return found


def configuration(base: TrainingConfig, bits: int, options: argparse.Namespace) -> TrainingConfig:
    """The first cycle of the supernet's configuration, for one form."""
    whole = base.supernet_training
    cycle = whole.model_copy(update={"epochs": whole.epochs // (whole.restarts + 1), "restarts": 0})
    changes: dict[str, Any] = {
        "supernet_training": cycle,
        "data": options.data,
        "model": base.model.model_copy(update={"weights": str(options.weights)}),
        "float_training": base.float_training.model_copy(update={"epochs": 0}),
        "static": StaticSettings(bits=bits, granularity=GRANULARITY, symmetry=SYMMETRY),
        "distillation": DistillationSettings(guidance=Guidance.LABELS),
        "weight_distribution": DistributionSettings(kurtosis_weight=0.0, skewness_weight=0.0),
    }
    return base.model_copy(update=changes)


if __name__ == "__main__":
    main()
