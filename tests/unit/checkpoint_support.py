"""A small supernet and what its checkpoint says about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.checkpoint import ArchitectureReference, CheckpointMetadata, metadata_of
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_parts import SPACE, Case, conv, made

CASE = Case(lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)))
PREPROCESSING = Preprocessing((8, 8), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resize_shorter_side=9)


def build(name: str, arguments: Mapping[str, object]) -> nn.Module:
    assert name == "test-model"
    return CASE.make()


def describe(supernet: Supernet, **changes: Any) -> CheckpointMetadata:
    arguments: dict[str, Any] = {
        "architecture": ArchitectureReference(name="test-model", arguments={"width": 4, "name": "a", "x": 0.5}),
        "preprocessing": PREPROCESSING,
        "augmentation": Augmentation(2, True),
        "classes": ("cat", "hund", "猫"),
        "provenance": {"seed": 3, "loss": 0.25, "note": "äöü", "resumed": False},
        **changes,
    }
    return metadata_of(supernet, **arguments)


def trained_supernet(seed: int = 0, space: ElasticSpace = SPACE) -> Supernet:
    supernet = Supernet.from_float(made(CASE, seed), torch.zeros(2, *CASE.shape), space).eval()
    supernet.initialize(torch.randn(16, *CASE.shape, generator=torch.Generator().manual_seed(seed)))
    with torch.no_grad():
        for index, parameter in enumerate(supernet.parameters()):
            parameter.add_(0.01 * (index % 7))
    return supernet
