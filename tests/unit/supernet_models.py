"""Small models that are awkward to convert, by what makes them so."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.unit.supernet_parts import (
    Case,
    DoubledConv,
    Net,
    NormWithActivation,
    OptionalArguments,
    Unused,
    attention,
    augmented_assignments,
    channel_shuffle,
    chunk_and_split,
    clashing_names,
    computed_axes,
    conv,
    conv1d,
    decoder,
    detached_branch,
    dropout,
    dtypes_and_copies,
    functional_activations,
    inplace_functions,
    inplace_methods,
    keywords,
    norm,
    normalizes,
    overwrites_input,
    parameter,
    parameters,
    pixels_in_the_batch,
    read_by_layer_and_norm,
    read_by_two_norms,
    returns_raw_output_too,
    sequence,
    sequence_first,
    shortcut_after_inplace_relu,
    size_between_conv_and_norm,
    skip_connection,
    squeeze_and_excite,
    statement_relu,
    training_branch,
)

#: Models whose conversion computes what the model computes.
CONVERTIBLE: dict[str, Case] = {
    "in-place relu as a statement": Case(
        lambda: Net(statement_relu, a=conv(), b=conv(4, 4), relu=nn.ReLU(inplace=True))
    ),
    "shortcut of a tensor that relu overwrote": Case(
        lambda: Net(shortcut_after_inplace_relu, a=conv(), b=conv(4, 4), relu=nn.ReLU(inplace=True))
    ),
    "in-place methods": Case(lambda: Net(inplace_methods, a=conv(), b=conv(4, 4))),
    "in-place functions": Case(lambda: Net(inplace_functions, a=conv(), b=conv(4, 4))),
    "augmented assignments": Case(lambda: Net(augmented_assignments, a=conv(), b=conv(4, 4), b2=conv(4, 4))),
    "model that overwrites its input": Case(lambda: Net(overwrites_input, a=conv())),
    "functional activations": Case(
        lambda: Net(functional_activations, a=conv(), b=conv(4, 4), c=conv(4, 4), d=conv(4, 4), e=conv(4, 4))
    ),
    "clip modules": Case(sequence(conv(), nn.ReLU6(inplace=True), conv(4, 4), nn.Hardtanh(-2, 2.5), conv(4, 4))),
    "functional pooling to one": Case(
        lambda: Net(
            lambda m, x: m.head(torch.flatten(F.adaptive_avg_pool2d(m.a(x), 1), 1)), a=conv(), head=nn.Linear(4, 5)
        )
    ),
    "adaptive pools that divide": Case(
        sequence(
            conv(),
            nn.AdaptiveAvgPool2d((2, 4)),
            nn.AdaptiveAvgPool2d((None, 1)),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    ),
    "adaptive pool to the same size": Case(sequence(conv(), nn.AdaptiveAvgPool2d(8), conv(4, 4))),
    "mean without axes": Case(lambda: Net(lambda m, x: m.head(m.a(x).mean([2, 3])), a=conv(), head=nn.Linear(4, 5))),
    "mean that keeps axes": Case(
        lambda: Net(
            lambda m, x: m.head(m.a(x).mean(dim=(-1, -2), keepdim=True).view(x.size(0), -1)),
            a=conv(),
            head=nn.Linear(4, 5),
        )
    ),
    "mean over computed axes": Case(lambda: Net(computed_axes, a=conv(), head=nn.Linear(4, 5))),
    "inputs by keyword": Case(lambda: Net(keywords, a=conv(), head=nn.Linear(16, 5))),
    "silu and hardswish": Case(
        lambda: Net(
            lambda m, x: m.c(F.hardswish(F.silu(m.hard(m.b(m.silu(m.a(x))))))),
            a=conv(),
            b=conv(4, 4),
            c=conv(4, 4),
            silu=nn.SiLU(inplace=True),
            hard=nn.Hardswish(),
        )
    ),
    "dropout": Case(lambda: Net(dropout, a=conv(), head=nn.Linear(4, 5), drop2d=nn.Dropout2d(0.5))),
    "concatenation": Case(
        lambda: Net(lambda m, x: m.c(torch.cat([m.a(x), F.relu(m.b(x))], 1)), a=conv(), b=conv(), c=conv(8, 4))
    ),
    "chunk and split": Case(lambda: Net(chunk_and_split, a=conv(3, 8), b=conv(4, 4), c=conv(4, 4))),
    "slices": Case(
        lambda: Net(
            lambda m, x: torch.cat([m.b(m.a(x)[:, :4]), m.c(m.a2(x)[:, 4:])], 1),
            a=conv(3, 8),
            a2=conv(3, 8),
            b=conv(4, 4),
            c=conv(4, 4),
        )
    ),
    "squeeze and excite": Case(
        lambda: Net(
            squeeze_and_excite,
            a=conv(3, 8),
            pool=nn.AdaptiveAvgPool2d(1),
            down=conv(8, 2, 1),
            up=conv(2, 8, 1),
            b=conv(8, 8),
        )
    ),
    "attention": Case(
        lambda: Net(
            attention,
            position=nn.Parameter(torch.randn(1, 6, 16)),
            norm=nn.LayerNorm(16),
            gelu=nn.GELU(),
            **{name: nn.Linear(16, 16) for name in "qkvo"},
            head=nn.Linear(16, 3),
        ),
        (6, 16),
    ),
    "multi-head attention": Case(
        lambda: Net(
            lambda m, x: m.head(m.attend(x, x, x, need_weights=False)[0].mean(1)),
            attend=nn.MultiheadAttention(8, 2, batch_first=True),
            head=nn.Linear(8, 2),
        ),
        (5, 8),
    ),
    "one-dimensional": Case(conv1d, (3, 16)),
    "transposed convolutions": Case(decoder, (4, 6, 6)),
    "channel shuffle": Case(lambda: Net(channel_shuffle, a=conv(4, 8, 1, groups=2), b=conv(8, 8, groups=8)), (4, 8, 8)),
    "skip connection and resizing": Case(
        lambda: Net(
            skip_connection,
            a=conv(4, 4),
            b=conv(4, 4),
            c=conv(8, 4),
            up=nn.Upsample(scale_factor=2),
            pool=nn.MaxPool2d(2),
        ),
        (4, 8, 8),
    ),
    "normalization before the layer": Case(sequence(norm(3), conv(), nn.ReLU(), norm(4))),
    "output read by a layer and a norm": Case(
        lambda: Net(read_by_layer_and_norm, a=conv(), norm=norm(), b=conv(4, 4), c=conv(4, 4))
    ),
    "output read by two norms": Case(lambda: Net(read_by_two_norms, a=conv(), norm=norm(), norm2=norm())),
    "raw output returned beside the norm's": Case(
        lambda: Net(returns_raw_output_too, a=conv(), identity=nn.Identity(), norm=norm())
    ),
    "input read by two layers": Case(lambda: Net(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv(3, 4, 1))),
    "tuple": Case(lambda: Net(lambda m, x: (F.relu(m.a(x)), m.b(x)), a=conv(), b=conv())),
    "dictionary": Case(lambda: Net(lambda m, x: {"a": F.relu(m.a(x)), "b": [m.b(x)]}, a=conv(), b=conv())),
    "parameters of the model": Case(
        lambda: Net(
            parameters,
            a=conv(),
            b=conv(4, 4),
            c=conv(8, 4),
            gamma=parameter(1, 4, 1, 1, fill=-1.0),
            extra=parameter(1, 4, 8, 8, fill=-2.0),
        )
    ),
    "names of parameters and operations clash": Case(
        lambda: Net(
            clashing_names,
            mul=parameter(1, fill=2.0),
            mul_1=parameter(1, 3, 1, 1, fill=3.0),
            conv2d=conv(),
            val_0=conv(4, 4),
            add=conv(4, 4),
            linear=nn.LayerNorm(8),
            relu=conv(4, 4),
        )
    ),
    "names that torch's exporter gives to helpers": Case(
        lambda: Net(
            lambda m, x: m.val_2(F.relu(m.val_1(F.relu(m.val_0(x))))),
            val_0=nn.Linear(16, 6),
            val_1=nn.Linear(6, 6),
            val_2=nn.Linear(6, 3),
        ),
        (5, 16),
    ),
    "methods named like attributes of modules": Case(lambda: Net(dtypes_and_copies, a=conv(), b=conv(4, 4))),
    "detached branch": Case(lambda: Net(detached_branch, a=conv(), b=conv(4, 4), c=conv(4, 4))),
    "names that are no identifiers": Case(
        lambda: Net(
            lambda m, x: m.d["é"](F.relu(m.d["1 2"](F.relu(m.d["a-b"](x))))),
            d=nn.ModuleDict({"a-b": conv(), "1 2": conv(4, 4), "é": conv(4, 4)}),
        )
    ),
    "negative gains": Case(sequence(conv(), norm(), nn.ReLU(), conv(4, 4, bias=False), norm())),
    "norms without gains": Case(sequence(conv(), norm(affine=False), nn.ReLU(), conv(4, 4), norm(affine=False))),
    "one norm behind two layers": Case(
        lambda: Net(lambda m, x: m.norm(m.b(F.relu(m.norm(m.a(x))))), a=conv(), b=conv(4, 4), norm=norm())
    ),
    "norm over the sequence": Case(sequence(nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), (6, 16)),
    "identity and dropout before the norm": Case(
        sequence(conv(), nn.Identity(), norm(), nn.ReLU(), conv(4, 4), nn.Dropout(0.5), norm())
    ),
    "size read between layer and norm": Case(
        lambda: Net(size_between_conv_and_norm, a=conv(), norm=norm(), head=nn.Linear(256, 3))
    ),
    "subclass of a layer": Case(sequence(DoubledConv(3, 4, 3), nn.ReLU(), conv(4, 4))),
    "double precision": Case(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(4, 4)).double()),
    "unused layers": Case(Unused),
    "optional arguments": Case(OptionalArguments),
    "kinds of padding": Case(
        sequence(
            nn.Conv2d(3, 4, (5, 3), padding="same"),
            nn.ReLU(),
            conv(4, 4, padding_mode="reflect"),
            nn.ReLU(),
            conv(4, 4, padding_mode="replicate", stride=2),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
        )
    ),
    "linear on the last axis of an image": Case(
        lambda: Net(lambda m, x: m.head(m.a(x).permute(0, 2, 3, 1)).mean((1, 2)), a=conv(), head=nn.Linear(4, 3))
    ),
    "normalizes in the model": Case(
        lambda: Net(normalizes, a=conv(), mean=torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    ),
    "another result in training": Case(lambda: Net(training_branch, a=conv(), b=conv(4, 4))),
    "reshape that changes nothing": Case(
        lambda: Net(lambda m, x: m.b(m.a(x.view(x.size(0), -1)).flatten(1)), a=nn.Linear(16, 8), b=nn.Linear(8, 4)),
        (16,),
    ),
    "sequence first": Case(lambda: Net(sequence_first, q=nn.Linear(16, 16), o=nn.Linear(16, 3)), (6, 16)),
    "another axis before the batch": Case(
        lambda: Net(lambda m, x: m.b(m.a(x).unsqueeze(0).squeeze(0)), a=conv(), b=conv(4, 4))
    ),
    "pixels in the batch": Case(lambda: Net(pixels_in_the_batch, a=conv(), head=nn.Linear(4, 5))),
    "norm as a function": Case(sequence(conv(), NormWithActivation(4), conv(4, 4), NormWithActivation(4))),
}
