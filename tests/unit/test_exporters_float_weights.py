"""Float weights written by an exporter quantize to the same codes again, whatever the scale."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqdeploy.errors import ValidationError
from eqdeploy.exporters import aimet_encodings
from eqdeploy.exporters.float_sidecar import Grid, SideFile
from eqdeploy.exporters.model_checks import SMALLEST_SCALE, check_encoding
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry

SCALES = st.floats(min_value=float(np.float32(1e-30)), max_value=1e6, width=32, allow_subnormal=False)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    """Any form of 1 to 8 bits."""
    bits = draw(st.integers(1, 8))
    signed = draw(st.booleans())
    narrow = signed and bits > 1 and draw(st.booleans())
    granularity, symmetry = draw(st.sampled_from(list(Granularity))), draw(st.sampled_from(list(Symmetry)))
    return Form(bits, granularity, symmetry, signed=signed, narrow=narrow)


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    """Any encoding of up to 8 bits with three channels on the last axis, or none."""
    form = draw(forms())
    per_channel = form.granularity is Granularity.PER_CHANNEL
    count = 3 if per_channel else 1
    middle = 0 if form.signed else min(1 << (form.bits - 1), form.q_max)
    if form.symmetry is Symmetry.SYMMETRIC:
        zero_points = [middle] * count
    else:
        zero_points = draw(st.lists(st.integers(form.q_min, form.q_max), min_size=count, max_size=count))
    scales = draw(st.lists(SCALES, min_size=count, max_size=count))
    shape = (3,) if per_channel else ()
    return Encoding(
        scale=np.array(scales, np.float32).reshape(shape),
        zero_point=np.array(zero_points, np.int32).reshape(shape),
        q_min=form.q_min,
        q_max=form.q_max,
        bits=form.bits,
        signed=form.signed,
        axis=1 if per_channel else None,
    )


def written(activations: dict[str, Encoding], weights: dict[str, Encoding]) -> str:
    """An encodings file."""
    grids = [
        {name: Grid.of(encoding, signed=False) for name, encoding in part.items()} for part in (activations, weights)
    ]
    return aimet_encodings.to_json(SideFile(*grids))


def read_back(text: str, *, axis: int | None) -> Encoding:
    """The encoding of ``w`` in an encodings file."""
    return aimet_encodings.side_file(aimet_encodings.from_json(text, "file")).weights["w"].encoding(axis, "w")


def all_codes(encoding: Encoding) -> np.ndarray:
    """Every code of the range, in each of three columns."""
    return np.repeat(np.arange(encoding.q_min, encoding.q_max + 1, dtype=np.int32)[:, None], 3, axis=1)


@given(encodings())
@settings(max_examples=300, deadline=None)
def test_dequantized_weights_quantize_to_their_own_codes(encoding: Encoding) -> None:
    codes = all_codes(encoding)
    weights = encoding.dequantize(codes)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(encoding.quantize(weights), codes)


@given(encodings())
@settings(max_examples=300, deadline=None)
def test_encodings_survive_aimet_json(encoding: Encoding) -> None:
    text = written({}, {"w": encoding})
    entries = aimet_encodings.from_json(text, "file").param_encodings["w"]
    assert all(entry.offset <= 0 and entry.min <= 0 <= entry.max for entry in entries)
    grid = read_back(text, axis=encoding.axis)
    stored = grid.stored_as(signed=encoding.signed)
    np.testing.assert_array_equal(stored.scale.view(np.uint32), encoding.scale.view(np.uint32))
    np.testing.assert_array_equal(stored.zero_point, encoding.zero_point)
    # The grid without its ends: quantizing the float weights with what the file says gives the same real values.
    weights = encoding.dequantize(all_codes(encoding))
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(weights)), weights)
    # What SNPE computes from min and max alone, in float64 as JSON holds it.
    step = np.array([(entry.max - entry.min) / (2**encoding.bits - 1) for entry in entries])
    np.testing.assert_array_equal(step.astype(np.float32).reshape(encoding.scale.shape), encoding.scale)


def test_symmetry_is_a_string_and_offsets_are_not_positive() -> None:
    symmetric = Encoding.per_tensor(0.5, 0, -127, 127, 8, signed=True)
    free = Encoding.per_tensor(0.25, 114, 0, 255, 8, signed=False)
    document = json.loads(written({"a": free}, {"w": symmetric}))
    assert document["version"] == "0.6.1"
    assert document["activation_encodings"]["a"] == [
        {
            "bitwidth": 8,
            "dtype": "int",
            "is_symmetric": "False",
            "max": 0.25 * 141,
            "min": 0.25 * -114,
            "offset": -114,
            "scale": 0.25,
        }
    ]
    assert document["param_encodings"]["w"][0]["is_symmetric"] == "True"
    assert document["param_encodings"]["w"][0]["offset"] == -128
    assert document["quantizer_args"]["per_channel_quantization"] == "False"


def entry(**changes: object) -> dict[str, object]:
    """A valid entry with some keys changed."""
    fresh: dict[str, object] = {
        "bitwidth": 8,
        "dtype": "int",
        "is_symmetric": "False",
        "max": 127.5,
        "min": 0.0,
        "offset": 0,
        "scale": 0.5,
    }
    return {**fresh, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_symmetric": True}, r"param_encodings\.w\.0\.is_symmetric"),
        ({"offset": 3}, r"param_encodings\.w\.0\.offset"),
        ({"offset": -300, "min": -150.0, "max": -22.5}, "outside the 8-bit range"),
        ({"scale": 0.0}, "greater than 0"),
        ({"scale": -0.5}, "greater than 0"),
        ({"scale": 0.1, "max": 0.1 * 255}, "not a float32"),
        ({"scale": 1e300, "max": 1e300 * 255}, "not a float32"),
        ({"scale": 1e-320, "max": 1e-320 * 255}, "not a float32"),
        ({"max": 128.0}, "min and max are not"),
        ({"is_symmetric": "True"}, "is_symmetric is True but offset is 0"),
        ({"bitwidth": 0}, "bitwidth"),
        ({"dtype": "float"}, "dtype"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_wrong_entries_are_refused(changes: dict[str, object], message: str) -> None:
    good = json.loads(written({}, {"w": Encoding.per_tensor(0.5, 0, 0, 255, 8, signed=False)}))
    good["param_encodings"]["w"] = [entry(**changes)]
    with pytest.raises(ValidationError, match=message):
        read_back(json.dumps(good), axis=None)


def test_not_a_number_in_json_is_refused() -> None:
    text = written({}, {"w": Encoding.per_tensor(0.5, 0, 0, 255, 8, signed=False)})
    with pytest.raises(ValidationError, match="scale"):
        aimet_encodings.from_json(text.replace('"scale": 0.5', '"scale": NaN'), "file")


@given(st.floats(min_value=0.0, max_value=float(SMALLEST_SCALE), exclude_min=True, exclude_max=True, width=32))
@settings(max_examples=50, deadline=None)
def test_denormal_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValidationError, match="denormal"):
        check_encoding("w", Encoding.per_tensor(scale, 0, -128, 127, 8, signed=True), ())
