"""A network that is awkward to rewrite, as a supernet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.fold_batch_norms import fold_batch_norms
from eqdeploy.supernet.supernet import Supernet
from tests.unit.training_support import CLASSES


class TwistedNet(nn.Module):
    """ReLUs that several read, that a pool or a view follows, or that follow a tensor which another reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv4 = nn.Conv2d(6, 6, 1)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(6 * 16, 12)
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = self.bn1(self.stem(x))
        second = torch.relu(first)
        third = self.bn2(self.conv2(second)) + first  # the ReLU's input is read again
        fourth = self.act(self.conv3(functional.max_pool2d(torch.relu(third), 2)))
        fifth = self.conv4(fourth)  # read without a ReLU, and once more
        sixth = self.up(functional.relu(fifth))
        flat = torch.flatten(functional.avg_pool2d(torch.relu(sixth), 2) + fifth, 1)
        logits: Tensor = self.fc2(functional.silu(self.fc1(flat)))
        return logits


def twisted_supernet(space: ElasticSpace) -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        supernet = Supernet.from_float(TwistedNet(), torch.zeros(2, 1, 8, 8), space)
    fold_batch_norms(supernet)
    supernet.initialize(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
    return supernet
