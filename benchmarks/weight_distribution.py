"""Weights before and after training with WDR: histogram, kurtosis and skewness of every layer (EQ-Net, Figure 2)."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import RESULTS, markdown_table, write_results
from safetensors.torch import load_file
from torch import Tensor

from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.training.losses import standardized_moments

#: Layers of which a histogram is drawn: the first of each stage that is not a boundary layer.
PICTURED = 4


def main() -> None:
    """Compare and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="float weights that the supernet started from")
    parser.add_argument("--supernet", default="cifar10-resnet20")
    options = parser.parse_args()
    before = load_file(options.weights)
    supernet = load_supernet(options.supernet, None).checkpoint.supernet
    layers = {name: (before[f"{name}.weight"], weight.detach()) for name, weight in supernet.latent_weights()}
    moments = {name: tuple(standardized_moments(weight) for weight in pair) for name, pair in layers.items()}
    draw({name: layers[name] for name in spread(list(layers)[1:-1], PICTURED)})
    rows = [
        [name, *(f"{found.kurtosis:.2f}" for found in pair), *(f"{found.skewness:.2f}" for found in pair)]
        for name, pair in moments.items()
    ]
    summary = (
        "Kurtosis and skewness of the weights of each layer in the float network and in the supernet that was trained "
        "from it. A uniform distribution has 1.8 and 0; WDR leaves the first layer alone.\n\n"
        "![Histograms of weights before and after](weight_distribution.svg)"
    )
    header = ["layer", "kurtosis before", "after", "skewness before", "after"]
    figures = {
        name: [{"kurtosis": found.kurtosis.item(), "skewness": found.skewness.item()} for found in pair]
        for name, pair in moments.items()
    }
    write_results(
        "weight_distribution",
        "python benchmarks/weight_distribution.py --weights float.safetensors",
        {"layers": figures},
        [summary, markdown_table(header, rows)],
    )


def spread(names: list[str], count: int) -> list[str]:
    """Evenly spread ones of a list."""
    return [names[index * (len(names) - 1) // (count - 1)] for index in range(count)]


def draw(layers: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Draw the histograms, each weight divided by its layer's standard deviation."""
    # The same file for the same weights.
    plt.rcParams.update({"svg.hashsalt": "eqdeploy", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, len(layers), figsize=(3 * len(layers), 2.6), sharey=True, constrained_layout=True)
    for axis, (name, pair) in zip(axes, layers.items(), strict=True):
        for weight, label in zip(pair, ("float", "supernet"), strict=True):
            standardized = (weight - weight.mean()) / weight.std()
            bins = torch.linspace(-4, 4, 61)
            axis.hist(standardized.flatten().numpy(), bins=bins.numpy(), density=True, histtype="step", label=label)
        axis.set(title=name, xlabel="standard deviations")
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "weight_distribution.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
