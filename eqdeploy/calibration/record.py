"""``calibration.json``: what calibration measured, as the numbers of an artifact were computed from it.

The same sums of float32 numbers have other last bits on another processor. What is measured is therefore written down:
all other numbers of an artifact follow from it exactly, wherever they are computed, and what was measured can be
measured again and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from eqdeploy.calibration.measured import MeasuredRanges, Range
from eqdeploy.errors import ValidationError
from eqdeploy.files import read_bounded, write_json
from eqdeploy.json_file import parse_json_model

CALIBRATION_FILE = "calibration.json"
_MAXIMUM_BYTES = 256 << 20

#: A number of float32; not all of float64 is one.
_Number = Annotated[float, Field(allow_inf_nan=False, ge=-3.4028234663852886e38, le=3.4028234663852886e38)]
_INT32 = 2**31


class _Range(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    scale: Annotated[_Number, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=-_INT32, lt=_INT32)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    schema_version: Literal[1] = 1
    statistics: dict[str, list[_Number]]
    ranges: dict[str, _Range]


@dataclass(frozen=True, eq=False)
class CalibrationRecord:
    """What calibration measured.

    Attributes:
        statistics: Running mean and variance of every BatchNorm as used, float32, by path, from
            :func:`eqdeploy.supernet.statistics.read_statistics`.
        ranges: Encodings of the tensors whose range was measured.
    """

    statistics: Mapping[str, Tensor]
    ranges: Mapping[str, Range]

    @property
    def measured(self) -> MeasuredRanges:
        """The encodings as freezing takes them."""
        return MeasuredRanges(self.ranges)


def write_record(directory: Path, record: CalibrationRecord) -> None:
    """Write ``calibration.json`` into an artifact; its decimals read back as the same float32 numbers.

    Raises:
        OutputError: If the file cannot be written.
    """
    document = {
        "schema_version": 1,
        "statistics": {
            name: value.detach().cpu().double().reshape(-1).tolist() for name, value in record.statistics.items()
        },
        "ranges": {
            name: {"scale": found.scale, "zero_point": found.zero_point} for name, found in record.ranges.items()
        },
    }
    write_json(directory / CALIBRATION_FILE, document)


def read_record(directory: Path) -> CalibrationRecord:
    """Read ``calibration.json`` of an artifact.

    All statistics have one axis: one value for a whole layer has the shape (1,).

    Raises:
        ValidationError: If it is missing, or not what :func:`write_record` writes.
    """
    path = directory / CALIBRATION_FILE
    if not path.exists():
        raise ValidationError("is missing", where=str(path), hint="export the artifact again")
    content = read_bounded(path, _MAXIMUM_BYTES, ValidationError)
    document = parse_json_model(content, _Document, "a record of calibration", str(path), ValidationError)
    return CalibrationRecord(
        {name: torch.tensor(values, dtype=torch.float32) for name, values in document.statistics.items()},
        {name: Range(found.scale, found.zero_point) for name, found in document.ranges.items()},
    )
