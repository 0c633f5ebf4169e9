"""The facts about encodings that ONNX has no field for, kept in one entry of a model's metadata.

Scales, zero-points, axes and storage are read from the graph itself. Widths cannot be: a range of 0 to 236 may
belong to 8 bits that ReLU6 ends early. The entry also holds the ranges and the float Clip nodes that were left out
because an integer Clip does their work; readers check every one of them against the graph.
"""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from eqdeploy.errors import ValidationError
from eqdeploy.json_file import refuse_repeated_keys
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel

METADATA_KEY = "eqdeploy.encodings"


class DroppedClip(BaseModel):
    """Bounds of a float Clip node that an integer Clip replaces; None where the node had none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    low: float | None = None
    high: float | None = None


class EncodingFacts(BaseModel):
    """Width, range and storage of one encoding."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    bits: int = Field(ge=1, le=32)
    q_min: int
    q_max: int
    signed: bool
    axis: int | None = Field(default=None, ge=0)
    dropped_clip: DroppedClip | None = None

    @staticmethod
    def of(encoding: Encoding, dropped_clip: DroppedClip | None = None) -> EncodingFacts:
        """Take the facts from an encoding."""
        return EncodingFacts(
            bits=encoding.bits,
            q_min=encoding.q_min,
            q_max=encoding.q_max,
            signed=encoding.signed,
            axis=encoding.axis,
            dropped_clip=dropped_clip,
        )


class FileFacts(BaseModel):
    """The whole metadata entry."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1] = 1
    activations: dict[str, EncodingFacts]
    parameters: dict[str, EncodingFacts]


def facts_of(model: QuantizedModel, dropped_clips: dict[str, DroppedClip] | None = None) -> FileFacts:
    """Collect the facts about every encoding of a model, in the model's order."""
    clips = dropped_clips or {}
    return FileFacts(
        activations={
            name: EncodingFacts.of(tensor.encoding, clips.get(name)) for name, tensor in model.activations.items()
        },
        parameters={name: EncodingFacts.of(parameter.encoding) for name, parameter in model.parameters.items()},
    )


def attach_facts(graph_model: ir.Model, facts: FileFacts) -> None:
    """Write the entry into a model's metadata."""
    graph_model.metadata_props[METADATA_KEY] = facts.model_dump_json(exclude_none=True)


def read_facts(graph_model: ir.Model, where: str) -> FileFacts:
    """Read the entry.

    Args:
        graph_model: Model as loaded.
        where: File name for error messages.

    Raises:
        ValidationError: If it is missing or damaged.
    """
    text = graph_model.metadata_props.get(METADATA_KEY)
    if text is None:
        raise ValidationError(
            f"has no metadata entry {METADATA_KEY}",
            where=where,
            hint="bit widths cannot be told from the graph alone; was the file rewritten by another tool?",
        )
    try:
        facts = FileFacts.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValidationError(
            f"{first['msg']}: {place or 'the whole entry'}", where=f"{where}: {METADATA_KEY}"
        ) from error
    refuse_repeated_keys(text, f"{where}: {METADATA_KEY}", ValidationError)
    return facts
