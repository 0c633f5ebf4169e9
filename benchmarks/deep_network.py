"""Time every stage of an export of deep chains of convolution, BatchNorm and ReLU: is the cost linear in the layers?

The weights are random (cost does not depend on them), the images the embedded digits. Every depth has a process of its
own. Processor time, because other work on the machine disturbs the clock on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import markdown_table, write_results
from torch import nn

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.digits import DIGITS_PREPROCESSING
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline import export_profiles
from eqdeploy.requests import ExportRequest
from eqdeploy.supernet.checkpoint import ArchitectureReference, metadata_of, save_checkpoint
from eqdeploy.supernet.supernet import Supernet

WIDTH = 8
SEED = 0
CLASSES = tuple("0123456789")


class Stopwatch:
    """A listener that notes how much processor time each stage takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[object]:
        """Time a stage; stages of the same name add up."""
        start = time.process_time()
        yield lambda amount: None
        self.seconds[description] = self.seconds.get(description, 0.0) + time.process_time() - start

    def note(self, message: str) -> None:
        """Ignore a remark."""

    def detail(self, message: str) -> None:
        """Ignore a detail."""


def chain(depth: int) -> nn.Module:
    """``depth`` layers for the digits, of which the last one classifies."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for index in range(depth - 1):
        layers += [nn.Conv2d(WIDTH if index else 1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, len(CLASSES)))


def write_supernet(path: Path, depth: int) -> None:
    """Write an untrained supernet of a chain, with scales that fit its values."""
    supernet = Supernet.from_float(chain(depth), torch.zeros((2, *DIGITS_PREPROCESSING.shape)), ElasticSpace())
    supernet.initialize(torch.randn(16, *DIGITS_PREPROCESSING.shape))
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name=None),
        preprocessing=DIGITS_PREPROCESSING,
        augmentation=Augmentation(),
        classes=CLASSES,
        provenance={},
    )
    save_checkpoint(supernet, metadata, path)


def measure_once(depth: int, profile: str, supernet: Path, output: Path) -> dict[str, float]:
    """Export in this process; seconds of processor time by stage."""
    watch = Stopwatch()
    Path("chain_of_layers.py").write_text(
        f"from deep_network import chain\n\n\ndef make():\n    return chain({depth})\n", encoding="utf-8"
    )
    start = time.process_time()
    export_profiles(
        ExportRequest(supernet=str(supernet), model="chain_of_layers:make", profiles=(profile,), output=output), watch
    )
    return {**watch.seconds, "everything": time.process_time() - start}


def main() -> None:
    """Measure every depth in a fresh process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", type=int, default=[125, 250, 500])
    parser.add_argument("--profile", default="onnxruntime-x86")
    parser.add_argument("--once", nargs=2, type=Path, metavar=("SUPERNET", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure_once(options.layers[0], options.profile, *options.once)))
        return
    found: dict[int, dict[str, float]] = {}
    for depth in options.layers:
        with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
            supernet = Path(name) / "chain.safetensors"
            write_supernet(supernet, depth)
            command = [sys.executable, __file__, "--layers", str(depth), "--profile", options.profile]
            command += ["--once", str(supernet), str(Path(name) / "out")]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[depth] = json.loads(output.splitlines()[-1])
            print(found[depth], file=sys.stderr)
    _write(found, options.profile)


def _loads(stage: str) -> bool:
    """Whether a stage loads supernet and images; its name holds a path."""
    return stage.startswith("loading ") and ".safetensors" in stage


def _write(found: dict[int, dict[str, Any]], profile: str) -> None:
    """Write the seconds of each stage by depth."""
    stages = [stage for stage in next(iter(found.values())) if not _loads(stage)]
    depths = list(found)
    listed = " ".join(map(str, depths))
    loading = {
        depth: sum(value for stage, value in seconds.items() if _loads(stage)) for depth, seconds in found.items()
    }
    rows = [["loading the supernet and the images", *(f"{loading[depth]:.2f}" for depth in depths)]]
    rows += [[stage, *(f"{found[depth][stage]:.2f}" for depth in depths)] for stage in stages]
    for row in rows:
        row.append(f"{float(row[-1]) / max(float(row[-2]), 0.01):.1f}")
    write_results(
        "deep_network",
        f"python benchmarks/deep_network.py --layers {listed}",
        {"profile": profile, "seed": SEED, "width": WIDTH, "seconds": {str(k): v for k, v in found.items()}},
        [
            f"Export for {profile}, seconds of processor time.",
            markdown_table(["stage", *(f"{depth} layers" for depth in depths), "last two, ratio"], rows),
        ],
    )


if __name__ == "__main__":
    main()
