"""Cost of a training step, of evaluating a subnet and of the first start, beside plain float training.

ResNet-20 on images of the size of CIFAR-10 (random ones: speed does not depend on what they show), batch 128. Float and
supernet alternate in one process, so that their ratio does not depend on what else the machine does at the time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import markdown_table, write_results
from torch import nn

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.network import ElasticSpace
from eqdeploy.progress import SilentProgress
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.evaluate import calibrated_correct
from eqdeploy.training.execution import Execution, StepMode, prepare
from eqdeploy.training.optimizer import clip_gradients, make_optimizer
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.settings import (
    DistillationSettings,
    DistributionSettings,
    FormSampling,
    Precision,
    SupernetSettings,
)
from eqdeploy.training.steps import SandwichStep
from eqdeploy.zoo import build

BATCH = 128
REPEATS = 7
PREPROCESSING = Preprocessing(image_size=(32, 32), channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
#: Images of an evaluation: those that BatchNorm is calibrated on, and those that are classified.
CALIBRATION, HELD_OUT = 2000, 10000
MODES = [(precision, compiled) for precision in Precision for compiled in (False, True)]


class Subject:
    """A float network and a supernet of it, both ready to train in one mode."""

    def __init__(self, precision: Precision, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.mode = StepMode(precision, channels_last=True, compile=compiled)
        self.network: nn.Module = build("cifar-resnet20", {}).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.train()
        # Compiled when it is first called.
        self.compiled_network: nn.Module = torch.compile(self.network)  # type: ignore[assignment]
        images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
        self.batch = Batch(images, torch.randint(10, (BATCH,)))
        self.supernet = Supernet.from_float(build("cifar-resnet20", {}), images[:2], ElasticSpace())
        self.execution: Execution = prepare(self.supernet, self.mode, SilentProgress())
        self.supernet.initialize(images)
        self.supernet.train()
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = make_optimizer(self.supernet, SupernetSettings(epochs=1, batch_size=BATCH))
        self.sandwich = SandwichStep(
            self.supernet, self.execution.train, DistillationSettings(), DistributionSettings()
        )

    def three_float_passes(self) -> None:
        """As many forward and backward passes of the plain network as a sandwich step has, as torch runs them."""
        for _ in range(3):
            self.float_pass(self.network)

    def three_compiled_float_passes(self) -> None:
        """The same, compiled."""
        for _ in range(3):
            self.float_pass(self.compiled_network)

    def float_pass(self, network: nn.Module) -> None:
        """Forward and backward of the plain network."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mode.precision is Precision.BFLOAT16):
            logits = network(self.batch.images)
        nn.functional.cross_entropy(logits.float(), self.batch.labels).backward()  # type: ignore[no-untyped-call]
        self.network.zero_grad(set_to_none=True)

    def sandwich_step(self) -> None:
        """All of a training step: three subnets, WDR, clipping, Adam."""
        self.optimizer.zero_grad(set_to_none=True)
        subnets = sample_sandwich(self.supernet.network, self.generator, FormSampling.PER_LAYER)
        self.sandwich.gradients(self.batch, subnets._asdict(), step=0)
        clip_gradients(self.optimizer, 1.0)
        self.optimizer.step()
        self.supernet.canonicalize()


def alternate(*functions: Callable[[], None], repeats: int = REPEATS) -> list[float]:
    """Median seconds of functions that take turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, measured in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return [median(measured) for measured in seconds]


def measure_step(threads: int, precision: Precision, *, compiled: bool) -> dict[str, Any]:
    """Three float passes and one sandwich step, seconds; what the first step costs more."""
    torch.set_num_threads(threads)
    subject = Subject(precision, compiled=compiled)
    subject.three_float_passes()
    if compiled:
        subject.three_compiled_float_passes()
    start = time.perf_counter()
    subject.sandwich_step()
    first = time.perf_counter() - start
    subject.sandwich_step()
    functions = [subject.sandwich_step, subject.three_float_passes]
    if compiled:
        functions.append(subject.three_compiled_float_passes)
    sandwich, floating, *compiled_floating = alternate(*functions)
    return {
        "threads": threads,
        "precision": str(precision),
        "compiled": compiled,
        "float_seconds": floating,
        "sandwich_seconds": sandwich,
        "ratio": sandwich / floating,
        "compiled_float_seconds": compiled_floating[0] if compiled else None,
        "compiled_ratio": sandwich / compiled_floating[0] if compiled else None,
        "compilation_seconds": first - sandwich if compiled else 0.0,
    }


def measure_evaluation(threads: int, *, compiled: bool) -> dict[str, Any]:
    """Calibration of BatchNorm and accuracy, float and one subnet; and the initialization of all forms."""
    torch.set_num_threads(threads)
    subject = Subject(Precision.FLOAT32, compiled=compiled)
    supernet, random = subject.supernet, np.random.default_rng(0)
    pixels = random.integers(0, 256, (HELD_OUT, 3, 32, 32), dtype=np.uint8)
    classes = tuple(str(index) for index in range(10))
    data = LabelledImages(pixels, random.integers(0, 10, HELD_OUT), classes, "random")
    calibration = torch.randn(CALIBRATION, 3, 32, 32)
    subnet = SubnetConfig.uniform(
        supernet.network,
        weight_bits=4,
        activation_bits=4,
        granularity=Granularity.PER_CHANNEL,
        weight_symmetry=Symmetry.ASYMMETRIC,
        activation_symmetry=Symmetry.ASYMMETRIC,
    )

    def evaluate_float() -> None:
        supernet.deactivate()
        calibrated_correct(supernet, calibration, data, PREPROCESSING)

    def evaluate_subnet() -> None:
        if subject.execution.evaluate is not None:
            supernet.activate(subnet)
            calibrated_correct(supernet, calibration, data, PREPROCESSING, forward=subject.execution.evaluate)
            return
        inference = InferenceNetwork(supernet)
        inference.activate(subnet)
        calibrated_correct(inference.module, calibration, data, PREPROCESSING, forward=inference.evaluate)

    evaluate_subnet()
    floating, quantized = alternate(evaluate_float, evaluate_subnet, repeats=3)
    subject.sandwich_step()
    initialization, step = alternate(
        lambda: supernet.initialize(torch.randn(256, 3, 32, 32)), subject.sandwich_step, repeats=3
    )
    return {
        "threads": threads,
        "compiled": compiled,
        "float_seconds": floating,
        "subnet_seconds": quantized,
        "ratio": quantized / floating,
        "initialization_seconds": initialization,
        "initialization_in_sandwich_steps": initialization / step,
    }


def measure_memory(what: str, *, compiled: bool) -> dict[str, Any]:
    """Largest memory of this fresh process beyond what it holds between two steps, in MiB."""
    torch.set_num_threads(1)
    subject = Subject(Precision.FLOAT32, compiled=compiled)
    step = (lambda: subject.float_pass(subject.network)) if what == "float" else subject.sandwich_step
    step()  # what the compiler and the first step need is not what a step needs
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what torch has freed, but the process still holds
    before = _status("VmRSS")
    _reset_peak()
    for _ in range(3):
        step()
    return {"what": what, "compiled": compiled, "mebibytes": (_status("VmHWM") - before) / 1024}


def _status(key: str) -> int:
    """A figure of this process in KiB."""
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def _reset_peak() -> None:
    """Let the kernel forget the peak so far."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def fresh(arguments: Sequence[str], threads: int, *, burners: int = 0) -> dict[str, Any]:
    """Run one measurement in a process of its own, with other processes that keep the cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--only", *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    finally:
        for process in busy:
            process.kill()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, file=sys.stderr)
    return found


def measure_only(arguments: Sequence[str]) -> dict[str, Any]:
    """One measurement, named by the arguments."""
    kind, *rest = arguments
    if kind == "step":
        return measure_step(int(rest[0]), Precision(rest[1]), compiled=rest[2] == "compiled")
    if kind == "evaluation":
        return measure_evaluation(int(rest[0]), compiled=rest[1] == "compiled")
    return measure_memory(rest[0], compiled=rest[1] == "compiled")


def main() -> None:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure_only(options.only)))
        return
    names = {False: "eager", True: "compiled"}
    steps, loaded, evaluations = [], [], []
    for threads in options.threads:
        for precision, compiled in MODES:
            steps.append(fresh(["step", str(threads), precision, names[compiled]], threads))
        loaded.append(fresh(["step", str(threads), Precision.BFLOAT16, "compiled"], threads, burners=2))
        for compiled in (False, True):
            evaluations.append(fresh(["evaluation", str(threads), names[compiled]], threads))
    memory = {"float, eager": fresh(["memory", "float", "eager"], 1)["mebibytes"]}
    for name in names.values():
        memory[f"sandwich, {name}"] = fresh(["memory", "sandwich", name], 1)["mebibytes"]
    _write(steps, loaded, evaluations, memory)


def _step_table(steps: list[dict[str, Any]]) -> str:
    """Table of measured steps."""
    header = ["threads", "precision", "step", "step, s", "three float passes, s", "ratio"]
    header += ["three compiled float passes, s", "ratio to these", "compilation, s"]
    rows = []
    for found in steps:
        row = [found["threads"], found["precision"], "compiled" if found["compiled"] else "eager"]
        row += [f"{found['sandwich_seconds']:.3f}", f"{found['float_seconds']:.3f}", f"{found['ratio']:.2f}"]
        if found["compiled"]:
            row += [f"{found['compiled_float_seconds']:.3f}", f"{found['compiled_ratio']:.2f}"]
            row += [f"{found['compilation_seconds']:.0f}"]
        rows.append(row + ["-"] * (len(header) - len(row)))
    return markdown_table(header, rows)


def _write(
    steps: list[dict[str, Any]],
    loaded: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    memory: dict[str, float],
) -> None:
    """Write all figures."""
    tables = [
        "One sandwich step (three subnets, WDR, clipping, Adam) beside three forward and backward passes of the plain "
        "float network, eager and, beside a compiled step, compiled as well; all channels_last.",
        _step_table(steps),
        "The same with two other processes that keep both cores busy.",
        _step_table(loaded),
        f"Evaluating one subnet: BatchNorm calibrated on {CALIBRATION} images, {HELD_OUT} classified, float32; and the "
        "initialization of all forms from 256 images.",
        markdown_table(
            ["threads", "", "float, s", "subnet, s", "ratio", "initialization, s", "in sandwich steps"],
            [
                [
                    found["threads"],
                    "compiled" if found["compiled"] else "eager",
                    f"{found['float_seconds']:.2f}",
                    f"{found['subnet_seconds']:.2f}",
                    f"{found['ratio']:.2f}",
                    f"{found['initialization_seconds']:.2f}",
                    f"{found['initialization_in_sandwich_steps']:.2f}",
                ]
                for found in evaluations
            ],
        ),
        "Peak memory of a step beyond what the process holds between steps, float32, as the system counts it.",
        markdown_table(
            ["step", "MiB", "of a float step"],
            [[name, f"{found:.0f}", f"{found / memory['float, eager']:.2f}"] for name, found in memory.items()],
        ),
    ]
    write_results(
        "training_speed",
        "python benchmarks/training_speed.py",
        {"repeats": REPEATS, "steps": steps, "steps_loaded": loaded, "evaluations": evaluations, "memory": memory},
        tables,
    )


if __name__ == "__main__":
    main()
