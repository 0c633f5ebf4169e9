"""How long a training on ImageNet would take and how much memory it would need: measured steps, and estimates.

For every configuration in examples/imagenet: multiply-accumulate operations from the network's description, the rate at
which a whole sandwich step computes them on this machine (random images of 224x224: speed does not depend on what they
show), and what a forward pass keeps for its backward pass. Everything about GPUs is an estimate from data sheets.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import markdown_table, write_results
from torch import Tensor, nn

from eqdeploy.network import OpKind
from eqdeploy.progress import SilentProgress
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.execution import StepMode, prepare
from eqdeploy.training.optimizer import clip_gradients, make_optimizer
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.settings import Precision
from eqdeploy.training.steps import SandwichStep, float_gradients
from eqdeploy.zoo import build

CONFIGURATIONS = Path(__file__).parents[1] / "examples" / "imagenet"
#: Training images of ILSVRC 2012.
IMAGES = 1_281_167
#: Subnets of a sandwich step; passes of each (the backward pass counts twice); operations of a multiply-accumulate.
SUBNETS, PASSES, OPERATIONS = 3, 3, 2
#: Of a parameter: its float32 value, gradient and two moments of Adam.
BYTES_PER_PARAMETER = 16
#: Architectures of depthwise convolutions, which compute little for each byte that they move.
DEPTHWISE = ("mobilenet_v2", "efficientnet_b0")


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says, and which share of it is assumed to be reached by a sandwich step.

    Attributes:
        name: The GPU.
        peak: Dense bfloat16 operations per second.
        utilization: Assumed share of the peak for ResNets, and for networks of depthwise convolutions.
    """

    name: str
    peak: float
    utilization: tuple[float, float]


#: A100: half of what NVIDIA publishes for plain training, see docs/imagenet.md. The others in proportion to their
#: memory bandwidth (2.0, 3.35 and 1.0 TB/s), which bounds these networks.
GPUS = (
    Gpu("A100 80 GB", 312e12, (0.10, 0.010)),
    Gpu("H100 SXM", 989e12, (0.05, 0.005)),
    Gpu("RTX 4090", 165e12, (0.10, 0.010)),
)
#: Assumed speed of several GPUs over that of one; eight as NVIDIA publishes for ResNet-50.
SPEEDUPS = {1: 1.0, 4: 3.6, 8: 6.7}


class Subject:
    """A supernet of a configuration, ready for a step."""

    def __init__(self, path: Path, batch_size: int, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.config = TrainingConfig.load(path)
        assert self.config.model.architecture is not None
        shape = self.config.preprocessing.to_preprocessing().shape
        self.batch = Batch(torch.randn(batch_size, *shape), torch.randint(1000, (batch_size,)))
        model = build(self.config.model.architecture, self.config.model.arguments)
        self.supernet = Supernet.from_float(model, self.batch.images[:2], self.config.space.to_space())
        self.mode = replace(StepMode.of(self.config.execution), compile=compiled)
        self.execution = prepare(self.supernet, self.mode, SilentProgress())
        self.supernet.initialize(self.batch.images)
        self.supernet.train()
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = make_optimizer(self.supernet, self.config.supernet_training)
        self.sandwich = SandwichStep(
            self.supernet, self.execution.train, self.config.distillation, self.config.weight_distribution
        )

    def float_passes(self) -> None:
        """Three forward and backward passes without quantization."""
        self.supernet.deactivate()
        for _ in range(SUBNETS):
            float_gradients(self.supernet, self.execution.train, self.batch, step=0)

    def sandwich_step(self) -> None:
        """All of a training step: three subnets, WDR, clipping, Adam."""
        self.optimizer.zero_grad(set_to_none=True)
        subnets = sample_sandwich(self.supernet.network, self.generator, self.config.sampling)
        self.sandwich.gradients(self.batch, subnets._asdict(), step=0)
        clip_gradients(self.optimizer, 1.0)
        self.optimizer.step()
        self.supernet.canonicalize()

    def kept_bytes(self, images: int) -> int:
        """Bytes that the forward pass of one subnet keeps for the backward pass, besides parameters and images."""
        subnets = sample_sandwich(self.supernet.network, self.generator, self.config.sampling)
        self.supernet.activate(subnets.random)
        lower = self.mode.precision is Precision.BFLOAT16
        layout = torch.channels_last if self.mode.channels_last else torch.contiguous_format
        inputs = self.batch.images[:images].contiguous(memory_format=layout)
        ours = {tensor.untyped_storage().data_ptr() for tensor in (inputs, *_state(self.supernet))}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                logits = self.supernet(inputs)
            loss = nn.functional.cross_entropy(logits.float(), self.batch.labels[:images])
        assert loss.requires_grad  # and the graph is alive until here, so no storage was counted for another
        return sum(kept.values())


def _state(supernet: Supernet) -> list[Tensor]:
    """Parameters and buffers."""
    return [*supernet.parameters(), *supernet.buffers()]


def measure(path: Path, batch_size: int, steps: int, threads: int, *, compiled: bool) -> dict[str, Any]:
    """Everything about one network that is measured or counted."""
    torch.set_num_threads(threads)
    eager = Subject(path, batch_size, compiled=False)
    few, many = max(2, batch_size // 4), batch_size
    kept = [eager.kept_bytes(images) for images in (few, many)]
    per_image = (kept[1] - kept[0]) / (many - few)  # the rest are quantized weights
    subject = Subject(path, batch_size, compiled=compiled)
    start = time.perf_counter()
    subject.sandwich_step()
    subject.float_passes()
    first = time.perf_counter() - start
    floating, sandwich = [median(times) for times in zip(*(_times(subject) for _ in range(steps)), strict=True)]
    network = subject.supernet.network
    macs = sum(layer.macs for layer in network.layers)
    operations = macs * OPERATIONS * PASSES * SUBNETS
    return {
        "network": path.name.removesuffix(".train.yaml"),
        "batch_size": batch_size,
        "macs": macs,
        "parameters": sum(parameter.numel() for parameter in subject.supernet.parameters()),
        "tensor_elements": sum(tensor.elements for tensor in network.tensors if tensor.op is not OpKind.RESHAPE),
        "kept_bytes_per_image": per_image,
        "kept_bytes_of_weights": kept[1] - per_image * many,
        "calibration_bytes": subject.config.calibration.batch_norm_images * subject.batch.images[0].numel() * 4,
        "first_seconds": first,
        "float_seconds": floating,
        "sandwich_seconds": sandwich,
        "sandwich_over_float": sandwich / floating,
        "operations_per_image": operations,
        "operations_per_second": operations * batch_size / sandwich,
        "hours_per_epoch": sandwich / batch_size * IMAGES / 3600,
    }


def _times(subject: Subject) -> tuple[float, float]:
    """Seconds of three float passes and of a sandwich step."""

    def seconds(function: Callable[[], None]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return seconds(subject.float_passes), seconds(subject.sandwich_step)


def estimate(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Images per second and days of 120 epochs on GPUs."""
    rows = []
    for gpu in GPUS:
        utilization = gpu.utilization[found["network"] in DEPTHWISE]
        rate = gpu.peak * utilization / found["operations_per_image"]
        days = {count: IMAGES * 120 / rate / speedup / 86400 for count, speedup in SPEEDUPS.items()}
        rows.append({"gpu": gpu.name, "utilization": utilization, "images_per_second": rate, "days": days})
    return rows


def memory(found: dict[str, Any], images: int) -> float:
    """Estimated bytes of a process for its share of a batch."""
    fixed: float = found["parameters"] * BYTES_PER_PARAMETER + found["calibration_bytes"]
    fixed += found["kept_bytes_of_weights"]
    return fixed + images * found["kept_bytes_per_image"]


def main() -> None:
    """Measure every network in a process of its own and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="do not compile: slower steps, no minutes of compilation")
    options = parser.parse_args()
    if options.only:
        compiled = not options.eager
        found = measure(Path(options.only), options.batch_size, options.steps, options.threads, compiled=compiled)
        print(json.dumps(found))
        return
    networks = []
    for path in sorted(CONFIGURATIONS.glob("*.train.yaml")):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        networks.append(json.loads(done.stdout.splitlines()[-1]))
        print(networks[-1], file=sys.stderr)
    _write(networks, options)


def _write(networks: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write all figures."""
    networks.sort(key=lambda found: -int(found["macs"]))
    estimates = {found["network"]: estimate(found) for found in networks}
    counts = [f"{count} GPU{'s' if count > 1 else ''}, days" for count in SPEEDUPS]
    tables = [
        f"Measured: one sandwich step (three subnets, WDR, clipping, Adam) of {options.batch_size} images of 224x224, "
        f"bfloat16, channels_last, {'eager' if options.eager else 'compiled'}, {options.threads} thread(s), median of "
        f"{options.steps}. Operations are {SUBNETS} subnets x {PASSES} passes x {OPERATIONS} x multiply-accumulates.",
        markdown_table(
            [
                "network",
                "GMAC an image",
                "parameters, million",
                "sandwich step, s",
                "over three float passes",
                "GFLOP/s",
                "epoch of ImageNet, hours",
            ],
            [
                [
                    found["network"],
                    f"{found['macs'] / 1e9:.3f}",
                    f"{found['parameters'] / 1e6:.1f}",
                    f"{found['sandwich_seconds']:.2f}",
                    f"{found['sandwich_over_float']:.2f}",
                    f"{found['operations_per_second'] / 1e9:.0f}",
                    f"{found['hours_per_epoch']:.0f}",
                ]
                for found in networks
            ],
        ),
        "Estimated, not measured: 120 epochs on GPUs, from the data sheet's dense bfloat16 peak and an assumed share "
        "of it.",
        markdown_table(
            ["network", "GPU", "assumed share of the peak", "images/s on one", *counts],
            [
                [
                    name,
                    row["gpu"],
                    f"{row['utilization']:.1%}",
                    f"{row['images_per_second']:.0f}",
                    *(f"{days:.1f}" for days in row["days"].values()),
                ]
                for name, rows in estimates.items()
                for row in rows
            ],
        ),
        "Memory of one process: what the forward pass of one subnet keeps for its backward pass (measured on the "
        "processor, eager, without images and parameters), beside every tensor of the network's description once in "
        "bfloat16; and the estimate for a share of the batch: that, the quantized weights, 16 bytes for each "
        "parameter, and the calibration images. Workspace and fragmentation come on top.",
        markdown_table(
            [
                "network",
                "kept, MiB an image",
                "tensors once, MiB an image",
                "64 images, GiB",
                "256 images, GiB",
                "512 images, GiB",
            ],
            [
                [
                    found["network"],
                    f"{found['kept_bytes_per_image'] / 2**20:.0f}",
                    f"{found['tensor_elements'] * 2 / 2**20:.0f}",
                    *(f"{memory(found, images) / 2**30:.0f}" for images in (64, 256, 512)),
                ]
                for found in networks
            ],
        ),
    ]
    write_results(
        "imagenet_estimate",
        "python benchmarks/imagenet_estimate.py" + (" --eager" if options.eager else ""),
        {"networks": networks, "estimates": estimates},
        tables,
    )


if __name__ == "__main__":
    main()
