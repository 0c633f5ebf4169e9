"""The learned per-tensor scale against smallest, mean and largest of the per-channel ones (EQ-Net, Table 4)."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import markdown_table, write_results
from torch import Tensor

from eqdeploy.cli.progress import make_progress
from eqdeploy.data.references import load_data
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import augmented_images, seeded_generator
from eqdeploy.training.evaluate import UniformForm, evaluate_grid

BITS = (2, 4, 8)
SYMMETRY = Symmetry.SYMMETRIC
CALIBRATION = 2000
#: How one scale is made of those of all channels; None leaves the learned one.
CHOICES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "learned": None,
    "smallest of the channels": torch.amin,
    "mean of the channels": torch.mean,
    "largest of the channels": torch.amax,
}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--supernet", default="cifar10-resnet20")
    options = parser.parse_args()
    torch.set_num_threads(1)
    accuracy = {name: measure(options.supernet, options.data, name, choose) for name, choose in CHOICES.items()}
    rows = [[name, *(f"{found[bits]:.2%}" for bits in BITS)] for name, found in accuracy.items()]
    summary = (
        f"Top-1 on all test images, weights per-tensor {SYMMETRY}, activations at the same width, first and last layer "
        f"8 bits, BatchNorm calibrated on {CALIBRATION} augmented training images. The other scales are put in the "
        "place of the learned ones after training."
    )
    write_results(
        "per_tensor_scales",
        f"python benchmarks/per_tensor_scales.py --data {options.data}",
        {"accuracy": accuracy},
        [summary, markdown_table(["scale of a weight", *(f"{bits} bits" for bits in BITS)], rows)],
    )


def measure(reference: str, data: str, name: str, choose: Callable[[Tensor], Tensor] | None) -> dict[int, float]:
    """Accuracy of each width with one way to choose scales."""
    checkpoint = load_supernet(reference, None).checkpoint
    supernet, preprocessing = checkpoint.supernet, checkpoint.preprocessing
    if choose is not None:
        replace_scales(supernet, choose)
    train = load_data(data, split="train", preprocessing=preprocessing)
    test = load_data(data, split="test", preprocessing=preprocessing)
    images = augmented_images(
        train, preprocessing, checkpoint.augmentation, count=CALIBRATION, generator=seeded_generator(0)
    )
    forms = [UniformForm(bits, Granularity.PER_TENSOR, SYMMETRY) for bits in BITS]
    with make_progress(quiet=False, verbose=False).stage(name, total=1 + len(forms)) as advance:
        grid = evaluate_grid(
            supernet, calibration=images, data=test, preprocessing=preprocessing, advance=advance, forms=forms
        )
    return {row.bits: row.accuracy for row in grid.rows}


@torch.no_grad()
def replace_scales(supernet: Supernet, choose: Callable[[Tensor], Tensor]) -> None:
    """Derive every per-tensor scale from the per-channel ones of the same width."""
    space = supernet.network.space
    for layer in supernet.network.layers:
        quantizer = supernet.weight_quantizer(layer.name)
        for bits in space.bits:
            shared, separate = (
                space.weight_form(bits, granularity, SYMMETRY)
                for granularity in (Granularity.PER_TENSOR, Granularity.PER_CHANNEL)
            )
            scales, _ = quantizer.numbers(separate)
            quantizer.log2_scale[shared.key].copy_(choose(scales).log2())


if __name__ == "__main__":
    main()
