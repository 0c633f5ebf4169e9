"""Forms and encodings: names, storage, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry


@st.composite
def forms(draw: st.DrawFn) -> Form:
    bits, signed = draw(st.integers(1, 8)), draw(st.booleans())
    return Form(
        bits,
        draw(st.sampled_from(Granularity)),
        draw(st.sampled_from(Symmetry)),
        signed=signed,
        narrow=signed and bits >= 2 and draw(st.booleans()),
    )


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    """Encodings of a form, some with a range that a clip ended early."""
    form = draw(forms())
    channels = draw(st.integers(1, 4)) if form.granularity is Granularity.PER_CHANNEL else None
    shape = () if channels is None else (channels,)
    zero_points = draw(st.lists(st.integers(form.q_min, form.q_max), min_size=channels or 1, max_size=channels or 1))
    return Encoding(
        scale=np.full(shape, draw(st.floats(1e-6, 1e6)), dtype=np.float32),
        zero_point=np.array(zero_points, dtype=np.int32).reshape(shape),
        q_min=draw(st.integers(form.q_min, min(zero_points))),
        q_max=draw(st.integers(max(zero_points), form.q_max)),
        bits=form.bits,
        signed=form.signed,
        axis=None if channels is None else 0,
    )


@given(form=forms())
def test_a_key_reads_back_as_its_form(form: Form) -> None:
    assert Form.from_key(form.key) == form
    assert "." not in form.key, "keys are names of parameters"


@given(form=forms())
def test_the_range_has_as_many_codes_as_the_bits_allow(form: Form) -> None:
    assert form.q_max - form.q_min + 1 == 2**form.bits - int(form.narrow)
    assert form.q_min <= 0 <= form.q_max


@pytest.mark.parametrize(
    "key",
    [
        "",
        "8",
        "8-per_tensor-symmetric",
        "8-per_tensor-symmetric-signed-",
        "08-per_tensor-symmetric-signed",
        "٨-per_tensor-symmetric-signed",
        "+8-per_tensor-symmetric-signed",
        "9-per_tensor-symmetric-signed",
        "0-per_tensor-symmetric-signed",
        "1-per_tensor-symmetric-signed_narrow",
        "8-per_row-symmetric-signed",
        "8-per_tensor-odd-signed",
        "8-per_tensor-symmetric-both",
        "8-per_tensor-symmetric-unsigned_narrow",
        "9" * 5000 + "-per_tensor-symmetric-signed",
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="form|bits|Granularity|Symmetry|narrow|digits"):
        Form.from_key(key)


@given(encoding=encodings(), data=st.data())
def test_moving_storage_moves_codes_and_keeps_every_real_value(encoding: Encoding, data: st.DataObject) -> None:
    other = encoding.stored_as(signed=not encoding.signed)
    assert other.signed != encoding.signed
    assert other.q_max - other.q_min == encoding.q_max - encoding.q_min
    assert other.stored_as(signed=encoding.signed).equals(encoding)
    limits = np.iinfo(other.container)
    assert limits.min <= other.q_min
    assert other.q_max <= limits.max
    x = np.array(
        data.draw(st.lists(st.floats(-300, 300), min_size=encoding.scale.size, max_size=encoding.scale.size)),
        dtype=np.float32,
    ).reshape(-1, *([1] if encoding.axis is None else []))
    x = x * np.float32(encoding.scale.reshape(-1)[0])
    codes, moved = encoding.quantize(x), other.quantize(x)
    assert np.array_equal(moved - codes, np.full_like(codes, other.q_min - encoding.q_min))
    assert np.array_equal(other.dequantize(moved), encoding.dequantize(codes))


def valid() -> dict[str, Any]:
    return {
        "scale": np.array([0.1, 0.2], dtype=np.float32),
        "zero_point": np.array([0, 1], dtype=np.int32),
        "q_min": -8,
        "q_max": 7,
        "bits": 4,
        "signed": True,
        "axis": 0,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": np.array([0.1, 0.2])},
        {"scale": np.array([0.1], dtype=np.float32)},
        {"scale": np.array([0.1, 0.0], dtype=np.float32)},
        {"scale": np.array([0.1, -0.1], dtype=np.float32)},
        {"scale": np.array([0.1, np.nan], dtype=np.float32)},
        {"scale": np.array([0.1, np.inf], dtype=np.float32)},
        {"zero_point": np.array([0.0, 1.0], dtype=np.float32)},
        {"zero_point": np.array([0, 8], dtype=np.int32)},
        {"zero_point": np.array([-9, 0], dtype=np.int32)},
        {"axis": None},
        {"q_min": -9},
        {"q_max": 8},
        {"signed": False},
        {"q_min": 5, "q_max": 2, "zero_point": np.array([5, 5], dtype=np.int32)},
    ],
    ids=str,
)
def test_inconsistent_encodings_are_refused(wrong: dict[str, Any]) -> None:
    Encoding(**valid())
    with pytest.raises(ValueError, match="scale|zero-point|range"):
        Encoding(**{**valid(), **wrong})


def test_containers_and_what_fills_them() -> None:
    full = Encoding.per_tensor(0.1, 0, -128, 127, 8, signed=True)
    assert full.container == np.int8
    assert full.fills_container
    assert not replace(full, q_min=-127).fills_container
    assert full.stored_as(signed=False).container == np.uint8
    assert full.stored_as(signed=False).fills_container
    bias = Encoding.per_tensor(0.1, 0, -(2**31), 2**31 - 1, 32, signed=True)
    assert bias.container == np.int32
    assert bias.quantize(np.array([1e20, -1e20], dtype=np.float32)).tolist() == [2**31 - 1, -(2**31)]


def test_equality_looks_at_every_field() -> None:
    encoding = Encoding(**valid())
    assert encoding.equals(Encoding(**valid()))
    for change in (
        {"scale": np.array([0.1, 0.3], dtype=np.float32)},
        {"zero_point": np.array([0, 0], dtype=np.int32)},
        {"q_min": -7},
        {"q_max": 6},
        {"axis": 1},
        {"bits": 5},
    ):
        assert not encoding.equals(Encoding(**{**valid(), **change}))
