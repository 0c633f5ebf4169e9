"""Forward passes that are awkward to convert, each with the operation or habit that makes it so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eqdeploy.network import ElasticSpace

SPACE = ElasticSpace(bits=(2, 4, 8))

Body = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a function of them and the input."""

    def __init__(self, body: Body, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@dataclass(frozen=True)
class Case:
    """A model and the shape of one input."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 8, 8)


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, **arguments: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **arguments})


def randomize(model: nn.Module) -> nn.Module:
    """Give BatchNorm layers statistics and gains as after training, some gains negative."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model


def made(case: Case, seed: int = 0) -> nn.Module:
    """The case's model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return randomize(case.make()).eval()


def statement_relu(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    m.relu(x)  # overwrites x
    return m.b(x)


def shortcut_after_inplace_relu(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    y = m.b(m.relu(x))
    return y + x


def inplace_methods(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    x.relu_()
    x.mul_(2.0).add_(x)
    return m.b(x)


def inplace_functions(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    F.relu(x, True)
    y = F.relu6(x, inplace=True)
    torch.sigmoid_(y)
    return m.b(y) + x


def augmented_assignments(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    y = m.b(x)
    y += x
    y -= 0.5
    y *= x
    y /= 2.0
    return m.b2(y)


def overwrites_input(m: Any, x: Tensor) -> Any:
    x -= 0.5
    x /= 2.0
    return m.a(x)


def functional_activations(m: Any, x: Tensor) -> Any:
    x = F.relu6(m.a(x))
    x = F.hardtanh(m.b(x), -2.0, 2.0)
    x = torch.clamp(m.c(x), min=-1, max=3.5)
    x = m.d(x).clamp(0, 1)
    return m.e(F.relu(x))


def chunk_and_split(m: Any, x: Tensor) -> Any:
    p, q = m.a(x).chunk(2, 1)
    r, t = torch.split(torch.cat([m.b(p), q], 1), [4, 4], dim=1)
    return m.c(r) * t


def squeeze_and_excite(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.b(x * torch.sigmoid(m.up(F.relu(m.down(m.pool(x))))))


def attention(m: Any, x: Tensor) -> Any:
    x = x + m.position
    y = m.norm(x)
    weights = torch.softmax(m.q(y) @ m.k(y).transpose(1, 2) / 4.0, dim=-1)
    x = x + m.o(weights @ m.v(y))
    return m.head(m.gelu(x).mean(1))


def channel_shuffle(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    b, c, h, w = x.shape
    x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
    return m.b(x)


def skip_connection(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    b = F.relu(m.b(m.pool(a)))
    up = F.interpolate(b, scale_factor=2.0, mode="bilinear")
    return m.c(torch.cat([m.up(b), a], 1)) + up


def read_by_layer_and_norm(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.b(m.norm(x)) + m.c(x)


def read_by_two_norms(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.norm(x) * m.norm2(x)


def returns_raw_output_too(m: Any, x: Tensor) -> Any:
    x = m.identity(m.a(x))
    return m.norm(x), x


def parameters(m: Any, x: Tensor) -> Any:
    x = F.relu(m.a(x)) * m.gamma
    x = F.relu(m.b(x)) + m.gamma
    return m.c(torch.cat([F.relu(x), m.extra.expand(x.shape[0], -1, -1, -1)], 1))


def clashing_names(m: Any, x: Tensor) -> Any:
    x = m.conv2d(x * m.mul * m.mul_1)
    x = m.linear(F.relu(x) + m.val_0(x))
    return m.relu(F.gelu(m.add(x)))


def dtypes_and_copies(m: Any, x: Tensor) -> Any:
    x = m.a(x.to(torch.float32).contiguous()).clone().double().float()
    return m.b(x.cpu())


def detached_branch(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.b(x.detach()) + m.c(x)


def keywords(m: Any, x: Tensor) -> Any:
    x = F.adaptive_avg_pool2d(input=F.silu(input=m.a(input=x)), output_size=(2, 2))
    return m.head(torch.flatten(input=x, start_dim=1))


def computed_axes(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.head(x.mean((x.dim() - 2, x.dim() - 1)))


def dropout(m: Any, x: Tensor) -> Any:
    x = m.drop2d(m.a(x)).mean([2, 3])
    return m.head(F.dropout(x, 0.3, training=m.training))


def training_branch(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    if m.training:
        return m.b(x), x
    return m.b(x)


def normalizes(m: Any, x: Tensor) -> Any:
    return m.a((x - m.mean) / torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))


def size_between_conv_and_norm(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    b, c, h, w = x.shape
    return m.head(F.relu(m.norm(x)).reshape(b, c * h * w))


class OptionalArguments(nn.Module):
    """Arguments with defaults, and arguments that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, *, flip: bool = False, **_: Any
    ) -> Any:
        if mask is not None:
            x = x * mask
        if flip:
            x = -x
        return self.a(x * scale)


class DoubledConv(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class Unused(nn.Module):
    """Layers and parameters that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.never_called, self.dead = conv(), conv(4, 4), conv(4, 4)
        self.nothing = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        self.dead(x)
        return x


def sequence(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules)


def parameter(*shape: int, fill: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, fill))


def norm(channels: int = 4, **arguments: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **arguments)


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
        norm(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        norm(4),
        nn.ReLU(inplace=True),
        conv(4, 3),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 8, 5, groups=4, dilation=2, stride=2, padding=2, padding_mode="circular"),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def sequence_first(m: Any, x: Tensor) -> Any:
    x = x.permute(1, 0, 2)
    length, batch, width = x.shape
    q = m.q(x).reshape(length, batch * 4, 4).transpose(0, 1)
    y = (q @ q.transpose(1, 2) @ q).transpose(0, 1).contiguous().view(length, batch, width)
    return m.o(y.permute(1, 0, 2))


def pixels_in_the_batch(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    n, c, h, w = x.shape
    return m.head(x.permute(0, 2, 3, 1).reshape(-1, c)).view(n, h, w, 5)


class NormWithActivation(nn.BatchNorm2d):
    """BatchNorm as a function, then an activation, as some model libraries write it."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.0 if self.momentum is None else self.momentum
        x = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )
        return F.relu(x)
