"""Small networks in which layers are applied several times or share a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.unit.supernet_parts import Net, conv

VOCABULARY = 12


@dataclass(frozen=True)
class Shared:
    """A network and what it shares.

    Attributes:
        make: Makes the network.
        shape: Shape of one input.
        uses: For each shared weight the names of the layers that have it, the first one first.
        ids: Whether the inputs are whole numbers below :data:`VOCABULARY`.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    uses: Mapping[str, tuple[str, ...]]
    ids: bool = False

    def inputs(self, count: int, seed: int = 0) -> Tensor:
        """Random inputs, shape (count, …)."""
        generator = torch.Generator().manual_seed(seed)
        if self.ids:
            return torch.randint(VOCABULARY, (count, *self.shape), generator=generator)
        return torch.randn(count, *self.shape, generator=generator)


def _block_twice(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.head(m.block(m.block(m.stem(x)) * 3.0).mean((2, 3)))
    return result


def block_called_twice() -> nn.Module:
    """Convolution, BatchNorm and ReLU as one block that is applied to its own output."""
    block = nn.Sequential(conv(4, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return Net(_block_twice, stem=conv(3, 4), block=block, head=nn.Linear(4, 3))


def _unrolled(m: Any, x: Tensor) -> Tensor:
    state = torch.tanh(m.embed(x[:, 0]))
    for step in range(1, 4):
        state = torch.tanh(m.embed(x[:, step]) + m.step(state))
    result: Tensor = m.head(state)
    return result


def unrolled_recurrence() -> nn.Module:
    """A recurrent cell of two linears over four inputs."""
    return Net(_unrolled, embed=nn.Linear(4, 6), step=nn.Linear(6, 6), head=nn.Linear(6, 3))


def tied_autoencoder() -> nn.Module:
    """Two linears of their own with one weight between them."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[4].weight = model[2].weight
    return model


def _beside_function(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(m.stem(x))
    result: Tensor = m.head(torch.relu(m.fc(x)) + torch.relu(F.linear(2.0 * x, m.fc.weight)))
    return result


def function_beside_layer() -> nn.Module:
    """A linear and a function that applies its weight without the bias."""
    return Net(_beside_function, stem=nn.Linear(5, 6), fc=nn.Linear(6, 6), head=nn.Linear(6, 3))


def _attend_twice(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.attention(x, x, x, need_weights=False)[0]
    x = x + m.attention(x, x, x, need_weights=False)[0]
    result: Tensor = m.head(x.mean(1))
    return result


def attention_called_twice() -> nn.Module:
    """One attention that is applied to its own output."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    return Net(_attend_twice, stem=nn.Linear(6, 8), attention=attention, head=nn.Linear(8, 3))


def _two_levels(m: Any, x: Tensor) -> Tensor:
    fine = torch.relu(m.stem(x))
    coarse = torch.relu(m.down(fine))
    boxes = [m.boxes(m.tower(level)).flatten(2) for level in (fine, coarse)]
    return torch.cat(boxes, 2)


def detection_head() -> nn.Module:
    """A head of two convolutions over two levels of a pyramid, as detectors have it."""
    return Net(
        _two_levels,
        stem=conv(3, 4),
        down=conv(4, 4, stride=2),
        tower=nn.Sequential(conv(4, 4), nn.ReLU()),
        boxes=conv(4, 4),
    )


def _tied_words(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.scores(torch.relu(m.hidden(m.table(x).mean(1))))
    return result


def tied_embedding() -> nn.Module:
    """A language model's table of words that is the weight of its last layer, too."""
    model: Any = Net(
        _tied_words, table=nn.Embedding(VOCABULARY, 6), hidden=nn.Linear(6, 6), scores=nn.Linear(6, VOCABULARY)
    )
    model.scores.weight = model.table.weight
    tied: nn.Module = model
    return tied


SHARED: Mapping[str, Shared] = {
    "block called twice": Shared(block_called_twice, (3, 8, 8), {"block.0": ("block.0", "block.0_use_2")}),
    "unrolled recurrence": Shared(
        unrolled_recurrence,
        (4, 4),
        {
            "embed": ("embed", "embed_use_2", "embed_use_3", "embed_use_4"),
            "step": ("step", "step_use_2", "step_use_3"),
        },
    ),
    "tied autoencoder": Shared(tied_autoencoder, (5,), {"2": ("2", "4")}),
    "function beside the layer": Shared(function_beside_layer, (5,), {"fc": ("fc", "fc_use_2")}),
    "attention called twice": Shared(
        attention_called_twice,
        (4, 6),
        {
            f"attention.{name}": (f"attention.{name}", f"attention.{name}_use_2")
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        },
    ),
    "detection head": Shared(
        detection_head,
        (3, 8, 8),
        {"tower.0": ("tower.0", "tower.0_use_2"), "boxes": ("boxes", "boxes_use_2")},
    ),
    "tied embedding": Shared(tied_embedding, (4,), {}, ids=True),
}
