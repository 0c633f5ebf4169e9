"""Train the embedded digits supernet as it was shipped, and measure every uniform form on the held-out images."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import markdown_table, write_results

from eqdeploy.network import ElasticSpace
from eqdeploy.progress import SilentProgress
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.trainer import train

CONFIGURATION = Path(__file__).parent.parent / "eqdeploy" / "embedded" / "digits.train.yaml"
#: Largest loss against the float network, in points, that a width may have on every form.
GOALS = {8: 1.0, 4: 2.0, 3: 5.0}


def main() -> None:
    """Train, measure, write the table."""
    config = TrainingConfig.load(CONFIGURATION)
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder), progress=SilentProgress())
        same = result.checkpoint.read_bytes() == CONFIGURATION.with_name("digits.safetensors").read_bytes()
    grid = result.evaluation
    space = ElasticSpace()
    accuracy = {(row.bits, row.granularity, row.symmetry): row.accuracy for row in grid.rows}
    forms = [(granularity, symmetry) for granularity in space.granularities for symmetry in space.symmetries]
    rows = [
        [bits, *(f"{accuracy[bits, *form]:.2%}" for form in forms), goal(bits, result.float_accuracy)]
        for bits in reversed(space.bits)
    ]
    figures = {
        "seed": config.seed,
        "images": grid.images,
        "float_accuracy": result.float_accuracy,
        "supernet_weights_in_float": grid.float_accuracy,
        "checkpoint_equals_the_shipped_one": same,
        "grid": [row.to_json() for row in grid.rows],
    }
    header = ["W = A bits", *(f"{granularity} {symmetry}" for granularity, symmetry in forms), "goal"]
    summary = (
        f"Top-1 on {grid.images} held-out images, first and last layer 8 bits, BatchNorm calibrated for each form. "
        f"Float network before quantization-aware training: {result.float_accuracy:.2%}; the supernet's weights "
        f"without quantization: {grid.float_accuracy:.2%}. One image is {1 / grid.images:.2%}."
    )
    write_results("digits", "python benchmarks/digits.py", figures, [summary, markdown_table(header, rows)])


def goal(bits: int, float_accuracy: float) -> str:
    """The goal of a width as text."""
    return f"at least {float_accuracy - GOALS[bits] / 100:.2%}" if bits in GOALS else ""


if __name__ == "__main__":
    sys.exit(main())
