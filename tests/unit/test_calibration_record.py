"""``calibration.json``: every number comes back to the last bit, and what is no record is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.calibration.measured import Range
from eqdeploy.calibration.record import CALIBRATION_FILE, CalibrationRecord, read_record, write_record
from eqdeploy.errors import ValidationError

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
RECORD = CalibrationRecord(
    {"bn.running_mean": torch.tensor([0.1, -3e-41]), "bn.running_var": torch.tensor(2.0)}, {"x": Range(0.25, 128)}
)


@given(
    st.lists(FLOAT32, max_size=8),
    st.floats(min_value=2.0**-100, max_value=2.0**100, width=32),
    st.integers(-128, 255),
)
def test_numbers_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], scale: float, zero_point: int
) -> None:
    folder = tmp_path_factory.mktemp("record")
    statistics = {"bn.running_mean": torch.tensor(values, dtype=torch.float32)}
    write_record(folder, CalibrationRecord(statistics, {"x": Range(scale, zero_point)}))
    found = read_record(folder)
    assert found is not None
    expected = statistics["bn.running_mean"].numpy().view(np.int32)
    np.testing.assert_array_equal(found.statistics["bn.running_mean"].numpy().view(np.int32), expected)
    assert found.ranges == {"x": Range(scale, zero_point)}


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        write_record(tmp_path, RECORD)
        contents.append((tmp_path / CALIBRATION_FILE).read_bytes())
    assert contents[0] == contents[1]


def test_an_artifact_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="is missing"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema_version=2),
        lambda d: d.pop("ranges"),
        lambda d: d.update(extra=1),
        lambda d: d["statistics"].update(y="text"),
        lambda d: d["statistics"].update(y=[1e300]),
        lambda d: d["ranges"]["x"].update(scale=0.0),
        lambda d: d["ranges"]["x"].update(zero_point=0.5),
        lambda d: d["ranges"]["x"].update(zero_point=1 << 40),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, change: Callable[[Any], object]) -> None:
    write_record(tmp_path, RECORD)
    document = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    change(document)
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(document))
    with pytest.raises(ValidationError, match=r"calibration\.json"):
        read_record(tmp_path)


def test_a_record_with_infinity_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    path = tmp_path / CALIBRATION_FILE
    path.write_text(path.read_text().replace("2.0", "Infinity"))
    with pytest.raises(ValidationError, match="calibration"):
        read_record(tmp_path)
