"""Options of exporters: typed, checked completely, with errors that name the option."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from eqdeploy.errors import ProfileError
from eqdeploy.exporters.files import EXTERNAL_DATA_THRESHOLD

OptionsType = TypeVar("OptionsType", bound="ExporterOptions")


class ExporterOptions(BaseModel):
    """What every built-in exporter accepts.

    Attributes:
        opset: ONNX opset of the models that are written: the profile's ``runtime.opset``.
        external_data_threshold: Bytes of tensor data from which on tensors are stored beside the model file.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    opset: int = Field(default=21, ge=13)
    external_data_threshold: int = Field(default=EXTERNAL_DATA_THRESHOLD, ge=1, le=EXTERNAL_DATA_THRESHOLD)


def parse_options(kind: type[OptionsType], options: Mapping[str, object], exporter: str) -> OptionsType:
    """Check options that a user wrote.

    Args:
        kind: Options of the exporter.
        options: Options by name.
        exporter: Name of the exporter, for messages.

    Raises:
        ProfileError: If an option is unknown or has a wrong type or value; names it and the nearest known one.
    """
    for name in options:
        if name not in kind.model_fields:
            close = difflib.get_close_matches(str(name), kind.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(kind.model_fields)}"
            raise ProfileError(f"exporter {exporter} has no option {name!r}", where="export.options", hint=hint)
    try:
        return kind.model_validate(dict(options))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        key = "runtime.opset or export.options.opset" if name == "opset" else f"export.options.{name}"
        raise ProfileError(f"{first['msg']}, got {first['input']!r}", where=key) from error
