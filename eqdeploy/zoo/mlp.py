"""A multi-layer perceptron with BatchNorm."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, validate_call
from torch import Tensor, nn

from eqdeploy.zoo.blocks import STRICT, Classes


class MLP(nn.Module):
    """Hidden layers of Linear, BatchNorm, ReLU, then a linear classifier.

    Args:
        features: Values of one image.
        width: Features of each hidden layer.
        depth: Number of hidden layers.
        classes: Number of classes.
    """

    def __init__(self, *, features: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for index in range(depth):
            inputs = features if index == 0 else width
            hidden.append(nn.Sequential(nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()))
        self.hidden = nn.Sequential(*hidden)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, ...) with ``features`` values each to logits (N, classes)."""
        logits: Tensor = self.classifier(self.hidden(torch.flatten(x, 1)))
        return logits


@validate_call(config=STRICT)
def mlp(
    *,
    features: Annotated[int, Field(ge=1, le=1_000_000, description="values of one image: channels*height*width")] = 64,
    width: Annotated[int, Field(ge=1, le=16_384, description="features of each hidden layer")] = 64,
    depth: Annotated[int, Field(ge=1, le=64, description="number of hidden layers")] = 2,
    classes: Classes = 10,
) -> nn.Module:
    """Multi-layer perceptron on flattened images."""
    return MLP(features=features, width=width, depth=depth, classes=classes)
