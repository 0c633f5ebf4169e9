"""A small network of the constructs that the digits network lacks, with images and a supernet of its own.

It pads an input whose zero-point is not 0, ends ranges by clipping, concatenates, averages over padded windows, rounds
sizes up, takes a softmax, and holds square weights that fit when they are turned over. Its weights are random, its
labels what it decides in float: the supernet is calibrated, not trained.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data import Preprocessing, load_images
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.checkpoint import (
    SUPERNET_FLOAT_ACCURACY,
    ArchitectureReference,
    metadata_of,
    save_checkpoint,
)
from eqdeploy.supernet.probes import Probes
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.result import training_statistics

#: How the command line would be told of the network.
FACTORY = "faults_network:Constructs"

CLASSES = tuple("abcdefghij")
PREPROCESSING = Preprocessing((12, 12), 3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.15))
_SIDE = 12


class Constructs(nn.Module):
    """Images (N, 3, 12, 12) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8, eps=1e-3)
        self.left = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.left_norm = nn.BatchNorm2d(8, eps=1e-5)
        self.right = nn.Conv2d(8, 8, 1, bias=False)
        self.right_norm = nn.BatchNorm2d(8, eps=1e-2)
        self.mix = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm2d(16)
        self.scores = nn.Conv2d(16, 36, 1)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = nn.functional.relu6(self.stem_norm(self.stem(x)))
        left = self.left_norm(self.left(x))
        right = nn.functional.relu6(self.right_norm(self.right(x)))
        both = torch.cat([left, right], 1)
        pooled = nn.functional.avg_pool2d(both, 3, 2, padding=1, count_include_pad=False)
        mixed = torch.relu(self.mix_norm(self.mix(pooled)) + pooled)
        shares = torch.softmax(self.scores(mixed).flatten(2), dim=-1)
        attended = torch.matmul(mixed.flatten(2), shares).reshape(-1, 16, 6, 6)
        largest = nn.functional.max_pool2d(attended, 3, 2, ceil_mode=True)
        features = torch.relu(self.hidden(largest.mean((2, 3))))
        logits: Tensor = self.head(features)
        return logits


@torch.no_grad()
def _random_model(inputs: Tensor) -> Constructs:
    """Random weights, and the statistics of some inputs."""
    torch.manual_seed(3)
    model = Constructs().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
    model.right_norm.bias.add_(3.0)  # so that ReLU6 clips
    model.stem_norm.weight.mul_(2.5)
    model.scores.weight.mul_(4.0)
    calibrate_batch_norm(model, [inputs])
    return model


def _images(count: int, seed: int) -> np.ndarray:
    """Coarse patterns in colours of their own, uint8, shape (count, 3, 12, 12)."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(-90, 90, (count, 3, 3, 3)).repeat(4, 2).repeat(4, 3)
    colour = np.array([150.0, 105.0, 60.0]).reshape(1, 3, 1, 1) + generator.uniform(-30, 30, (count, 3, 1, 1))
    noise = generator.normal(0, 12, (count, 3, _SIDE, _SIDE))
    return np.clip(coarse + colour + noise, 0, 255).astype(np.uint8)


@torch.no_grad()
def _on_ties(supernet: Supernet) -> None:
    """Put some weights and biases half-way between two codes, where only the rule of rounding decides.

    The scales of the layer become powers of two, so that products and quotients are exact.
    """
    quantizer = supernet.weight_quantizer("hidden")
    for parameter in quantizer.log2_scale.values():
        parameter.copy_(parameter.ceil())
    source = supernet.network.layer["hidden"].input_tensor
    for name in (source, "relu_1"):
        for parameter in supernet.activation_quantizers()[name].log2_scale.values():
            parameter.copy_(parameter.ceil())
    key = "8-per_channel-symmetric-signed"
    layer = supernet.graph_module.get_submodule("hidden")
    scale = torch.exp2(quantizer.log2_scale[key])
    ties = torch.tensor([-3.5, -0.5, 0.5, 1.5, 2.5, 4.5])
    layer.weight[:, : len(ties)] = scale[:, None] * ties
    inputs = supernet.activation_quantizers()[source].log2_scale
    grid = scale * torch.exp2(inputs[next(key for key in inputs if key.startswith("8-per_tensor-asymmetric"))])
    layer.bias.copy_(grid * ((layer.bias / grid).floor() + 0.5))


@torch.no_grad()
def _clip_below_the_last_code(supernet: Supernet) -> None:
    """Give a ReLU6 a range that reaches 7, so that its codes end early."""
    for key, parameter in supernet.activation_quantizers()["relu6"].log2_scale.items():
        parameter.fill_(math.log2(7.0 / (2 ** int(key.split("-")[0]) - 1)))


@torch.no_grad()
def _decide_for_every_class(supernet: Supernet, inputs: Tensor) -> None:
    """Give all logits the mean 0 and the standard deviation 1."""
    supernet.deactivate()
    logits = supernet(inputs)
    head = supernet.graph_module.get_submodule("head")
    head.weight.div_(logits.std(0)[:, None])
    head.bias.sub_(logits.mean(0)).div_(logits.std(0))
    supernet.weight_quantizer("head").initialize(head.weight)


def make_supernet(folder: Path, images: int) -> tuple[Path, Path]:
    """Write the supernet and its images, and return the paths of both.

    Args:
        folder: Existing folder.
        images: Number of images to calibrate on, and as many again to judge on.
    """
    pixels = _images(2 * images, seed=5)
    inputs = torch.from_numpy(PREPROCESSING.apply(pixels[:images]))
    supernet = Supernet.from_float(_random_model(inputs), inputs[:2], ElasticSpace(bits=(4, 7, 8)))
    supernet.initialize(inputs)
    supernet.eval()
    _on_ties(supernet)
    _clip_below_the_last_code(supernet)
    _decide_for_every_class(supernet, inputs)
    for name, part in (("train", pixels[:images]), ("test", pixels[images:])):
        np.savez(folder / f"{name}.npz", images=part, labels=_decisions(supernet, part), classes=np.asarray(CLASSES))
    training = load_images(str(folder), split="train", preprocessing=PREPROCESSING)
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name=None),
        preprocessing=PREPROCESSING,
        augmentation=Augmentation(),
        classes=CLASSES,
        provenance={"calibrated_on": "random patterns", SUPERNET_FLOAT_ACCURACY: 1.0},
        training_data=training_statistics(supernet, training, PREPROCESSING),
    )
    path = folder / "constructs.safetensors"
    save_checkpoint(supernet, metadata, path, Probes.of(supernet, pixels[:4], PREPROCESSING))
    return path, folder


@torch.no_grad()
def _decisions(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """What the float network decides, int64, shape (N,)."""
    return model(torch.from_numpy(PREPROCESSING.apply(pixels))).argmax(1).numpy()
