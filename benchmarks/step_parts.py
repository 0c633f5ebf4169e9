"""Where a compiled training step goes beyond three compiled passes of the float network.

ResNet-20 on images of the size of CIFAR-10, batch 128, one thread, as in training_speed.py. All parts alternate in one
process: the forward pass, and both passes, with nothing quantized, with the weights alone, with the activations alone
and with both; and what a step does beside its passes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import markdown_table, write_results
from torch import nn
from training_speed import BATCH, Subject, alternate

from eqdeploy.training.compiled import CompiledSupernet
from eqdeploy.training.optimizer import clip_gradients
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.settings import FormSampling, Precision

REPEATS = 7


class Parts:
    """The parts of a step, each as a function."""

    def __init__(self, precision: Precision) -> None:
        self.subject = Subject(precision, compiled=True)
        self.supernet = self.subject.supernet
        self.subnets = sample_sandwich(self.supernet.network, self.subject.generator, FormSampling.PER_LAYER)
        self.compiled = CompiledSupernet(self.supernet)

    def passes(self, *, weights: bool, activations: bool) -> Callable[[], None]:
        """Forward and backward of three subnets of which only a part is quantized."""

        def run() -> None:
            self.supernet.zero_grad(set_to_none=True)
            for subnet in self.subnets:
                self._activate(subnet, weights=weights, activations=activations)
                logits = self.subject.execution.train(self.subject.batch.images)
                nn.functional.cross_entropy(logits, self.subject.batch.labels).backward()  # type: ignore[no-untyped-call]

        return run

    def forward(self, *, weights: bool, activations: bool) -> Callable[[], None]:
        """The same without the backward pass; what it needs is kept."""

        def run() -> None:
            for subnet in self.subnets:
                self._activate(subnet, weights=weights, activations=activations)
                self.subject.execution.train(self.subject.batch.images)

        return run

    def regularize(self) -> None:
        """WDR and its gradients."""
        self.subject.sandwich._regularize(0)

    def bind(self) -> None:
        """Scales and zero-points of three subnets as tensors; part of every pass."""
        for subnet in self.subnets:
            self.supernet.activate(subnet)
            self.compiled._bind(BATCH)
            self.compiled._release()

    def optimize(self) -> None:
        """Clipping, Adam."""
        clip_gradients(self.subject.optimizer, 1.0)
        self.subject.optimizer.step()
        self.supernet.canonicalize()

    def _activate(self, subnet: Any, *, weights: bool, activations: bool) -> None:
        """Switch to a subnet of which only a part is quantized."""
        self.supernet.activate(subnet)
        if not weights:
            for layer in self.supernet.network.layers:
                self.supernet.weight_quantizer(layer.name).activate(None)
        if not activations:
            for quantizer in self.supernet.activation_quantizers().values():
                quantizer.activate(None)


def measure(precision: Precision) -> dict[str, float]:
    """Seconds of all parts."""
    torch.set_num_threads(1)
    parts = Parts(precision)
    functions: dict[str, Callable[[], None]] = {
        "three compiled float passes": parts.subject.three_compiled_float_passes
    }
    chosen = {
        "nothing quantized": (False, False),
        "weights quantized": (True, False),
        "activations quantized": (False, True),
        "both quantized": (True, True),
    }
    for name, (weights, activations) in chosen.items():
        functions[f"forward, {name}"] = parts.forward(weights=weights, activations=activations)
        functions[f"forward and backward, {name}"] = parts.passes(weights=weights, activations=activations)
    functions |= {
        "scales as tensors (part of the passes)": parts.bind,
        "WDR": parts.regularize,
        "clipping and Adam": parts.optimize,
        "whole step": parts.subject.sandwich_step,
    }
    for function in functions.values():  # compiles
        function()
    return dict(zip(functions, alternate(*functions.values(), repeats=REPEATS), strict=True))


def main() -> None:
    """Measure both precisions in fresh processes and write the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=Precision, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.only)))
        return
    found = {precision: _fresh(precision) for precision in Precision}
    names = list(next(iter(found.values())))
    rows = []
    for name in names:
        row = [name]
        for seconds in found.values():
            row += [f"{seconds[name]:.3f}", f"{seconds[name] / seconds[names[0]]:.3f}"]
        rows.append(row)
    header = ["part"] + [text for precision in found for text in (f"{precision}, s", "share")]
    write_results(
        "step_parts",
        "OMP_NUM_THREADS=1 python benchmarks/step_parts.py",
        {"repeats": REPEATS, "batch": BATCH, "seconds": {str(key): value for key, value in found.items()}},
        ["Shares are of the three compiled float passes.", markdown_table(header, rows)],
    )


def _fresh(precision: Precision) -> dict[str, float]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--only", precision],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


if __name__ == "__main__":
    main()
