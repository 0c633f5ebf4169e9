"""AIMET encodings JSON, version 0.6.1: the file that SNPE takes as quantization overrides.

The grid of this format is always unsigned: ``real = scale · (q + offset)`` with q in [0, 2^b − 1] and
``offset <= 0``, so ``offset = −zero_point`` after signed integers were shifted by 2^(b−1). Symmetry is the string
"True" or "False"; a JSON boolean is taken for asymmetric by AIMET's own reader. There is no axis: a list has one
entry, or one for each output channel of the operation that reads the weight. Sources: AIMET, Quantization Encoding
Specification (quic/aimet, Docs/api_docs/quantization_encoding_specification.rst) and aimet_onnx/quantsim.py.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from eqdeploy import __version__
from eqdeploy.errors import ValidationError
from eqdeploy.exporters.float_sidecar import Grid, SideFile
from eqdeploy.json_file import refuse_repeated_keys

VERSION: Literal["0.6.1"] = "0.6.1"

#: Smallest width that the specification names; AIMET's and Qualcomm's tools are not documented for less.
SMALLEST_DOCUMENTED_BITS = 4


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class AimetEncoding(_Model):
    """One scale of one tensor."""

    bitwidth: int = Field(ge=1, le=32)
    dtype: Literal["int"]
    is_symmetric: Literal["True", "False"]
    max: float
    min: float
    offset: int = Field(le=0)
    scale: float = Field(gt=0)


Entries = Annotated[list[AimetEncoding], Field(min_length=1)]


class QuantizerArguments(_Model):
    """Remarks about the whole file; readers ignore them."""

    activation_bitwidth: int
    dtype: Literal["int"]
    is_symmetric: Literal["True", "False"]
    param_bitwidth: int
    per_channel_quantization: Literal["True", "False"]
    quant_scheme: str


class Producer(_Model):
    """Which program wrote the file."""

    package: str
    version: str


class AimetFile(_Model):
    """A whole encodings file."""

    version: Literal["0.6.1"]
    activation_encodings: dict[str, Entries]
    param_encodings: dict[str, Entries]
    quantizer_args: QuantizerArguments
    producer: Producer


def encode(grid: Grid) -> list[AimetEncoding]:
    """Write an unsigned grid as the list of entries that the format wants.

    ``min`` and ``max`` span all 2^b codes even where the encoding's own range ends earlier (a narrow weight, an
    activation behind ReLU6): SNPE computes its step as (max − min) / (2^b − 1), so a shorter span would be another
    scale. As products of a float32 scale with an integer below 2^16 they are exact in JSON's float64.
    """
    last_code = (1 << grid.bits) - 1
    return [
        AimetEncoding(
            bitwidth=grid.bits,
            dtype="int",
            is_symmetric="True" if grid.is_symmetric else "False",
            max=scale * (last_code - zero_point),
            min=scale * -zero_point,
            offset=-zero_point,
            scale=scale,
        )
        for scale, zero_point in zip(grid.scales, grid.zero_points, strict=True)
    ]


def decode(entries: list[AimetEncoding], *, name: str) -> Grid:
    """Read the entries of one tensor as an unsigned grid.

    Args:
        entries: One entry, or one for each channel.
        name: Tensor name for messages.

    Raises:
        ValidationError: If the entries contradict themselves or each other.
    """
    first = entries[0]
    last_code = (1 << first.bitwidth) - 1
    for entry in entries:
        if (entry.bitwidth, entry.is_symmetric) != (first.bitwidth, first.is_symmetric):
            raise ValidationError("its channels differ in bitwidth or symmetry", where=name)
        if (entry.min, entry.max) != (entry.scale * entry.offset, entry.scale * (entry.offset + last_code)):
            raise ValidationError("min and max are not scale * offset and scale * (offset + 2^b - 1)", where=name)
        if entry.offset < -last_code:
            raise ValidationError(f"offset {entry.offset} lies outside the {entry.bitwidth}-bit range", where=name)
    grid = Grid(
        scales=tuple(entry.scale for entry in entries),
        zero_points=tuple(-entry.offset for entry in entries),
        bits=first.bitwidth,
        signed=False,
        per_channel=len(entries) > 1,
    )
    if (first.is_symmetric == "True") != grid.is_symmetric:
        raise ValidationError(f"is_symmetric is {first.is_symmetric} but offset is {first.offset}", where=name)
    return grid


def to_json(side_file: SideFile) -> str:
    """Write a whole file, tensors in alphabetical order.

    Args:
        side_file: Unsigned grids of activations and weights.
    """
    activations, weights = side_file.activations, side_file.weights
    symmetric = all(grid.is_symmetric for grid in weights.values())
    document = AimetFile(
        version=VERSION,
        activation_encodings={name: encode(activations[name]) for name in sorted(activations)},
        param_encodings={name: encode(weights[name]) for name in sorted(weights)},
        quantizer_args=QuantizerArguments(
            activation_bitwidth=max((grid.bits for grid in activations.values()), default=8),
            dtype="int",
            is_symmetric="True" if symmetric else "False",
            param_bitwidth=max((grid.bits for grid in weights.values()), default=8),
            per_channel_quantization="True" if any(grid.per_channel for grid in weights.values()) else "False",
            quant_scheme="post_training_tf",
        ),
        producer=Producer(package="eqdeploy", version=__version__),
    )
    return json.dumps(document.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def side_file(document: AimetFile) -> SideFile:
    """Read the entries of all tensors.

    Raises:
        ValidationError: If an entry contradicts itself; names the tensor.
    """
    return SideFile(
        activations={name: decode(entries, name=name) for name, entries in document.activation_encodings.items()},
        weights={name: decode(entries, name=name) for name, entries in document.param_encodings.items()},
    )


def from_json(text: str, where: str) -> AimetFile:
    """Read a whole file.

    Args:
        text: The document.
        where: File name for messages.

    Raises:
        ValidationError: If it is no encodings file of this version; names the first wrong key.
    """
    try:
        document = AimetFile.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValidationError(first["msg"], where=f"{where}: {place}" if place else where) from error
    refuse_repeated_keys(text, where, ValidationError)
    both = sorted(set(document.activation_encodings) & set(document.param_encodings))
    if both:
        raise ValidationError("stands in both sections", where=f"{where}: {both[0]}")
    return document
