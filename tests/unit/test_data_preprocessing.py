"""Preprocessing: the formula, the JSON round trip, and refusal of everything else."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.data import Preprocessing
from eqdeploy.errors import CheckpointError, DataError

IMAGENET = Preprocessing((224, 224), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize_shorter_side=256)
NUMBERS = st.floats(-10, 10)
POSITIVE = st.floats(1e-3, 10)


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    channels = draw(st.integers(1, 4))
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    return Preprocessing(
        image_size=size,
        channels=channels,
        mean=tuple(draw(st.lists(NUMBERS, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(POSITIVE, min_size=channels, max_size=channels))),
        scale=draw(POSITIVE),
        resize_shorter_side=draw(st.none() | st.integers(max(size), 32)),
    )


@given(preprocessings())
def test_json_round_trip_is_exact(preprocessing: Preprocessing) -> None:
    text = json.dumps(preprocessing.to_json())
    assert Preprocessing.from_json(json.loads(text), where="x") == preprocessing


@given(preprocessings(), st.integers(0, 255))
def test_formula_in_float32(preprocessing: Preprocessing, pixel: int) -> None:
    stored = np.full((2, *preprocessing.shape), pixel, np.uint8)
    values = preprocessing.apply(stored)
    assert values.dtype == np.float32
    assert values.shape == stored.shape
    for channel in range(preprocessing.channels):
        scaled = np.float32(pixel) * np.float32(preprocessing.scale)
        expected = (scaled - np.float32(preprocessing.mean[channel])) / np.float32(preprocessing.std[channel])
        assert (values[:, channel] == expected).all()
    assert np.array_equal(values, preprocessing.apply(stored.astype(np.float32)))
    assert np.array_equal(preprocessing.black, preprocessing.apply(np.zeros_like(stored))[0, :, 0, 0])


def test_stored_images_are_left_alone() -> None:
    stored = np.ones((1, 1, 2, 2), np.float32)
    Preprocessing((2, 2), 1, (0.5,), (2.0,), 1.0).apply(stored)
    assert (stored == 1).all()


def test_apply_names_both_shapes() -> None:
    with pytest.raises(DataError, match=r"\(3, 8, 8\).*\(3, 224, 224\)"):
        IMAGENET.apply(np.zeros((1, 3, 8, 8), np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": [224]},
        {"image_size": [224, 0]},
        {"image_size": [224, 224.0]},
        {"image_size": [224, True]},
        {"image_size": "ab"},
        {"image_size": 224},
        {"image_size": [1 << 40, 1]},
        {"channels": 2},
        {"channels": "3"},
        {"channels": 1 << 40},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, None]},
        {"mean": [0.5, 0.5, math.nan]},
        {"std": [1, 1, 0]},
        {"std": [1, 1, -1]},
        {"std": [1, 1, 1e-300]},
        {"std": [1, 1, math.inf]},
        {"scale": 0},
        {"scale": 10**400},
        {"scale": True},
        {"scale": [1]},
        {"resize_shorter_side": 223},
        {"resize_shorter_side": 256.0},
        {"resize_shorter_side": False},
    ],
)
def test_wrong_values_are_refused_with_their_key(change: dict[str, Any]) -> None:
    key = next(iter(change))
    with pytest.raises(CheckpointError, match=rf"^file: .*{'mean' if key == 'channels' else key}|^file: channels"):
        Preprocessing.from_json(IMAGENET.to_json() | change, where="file")


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_other_documents_are_refused(document: object) -> None:
    with pytest.raises(CheckpointError, match="file: must be an object"):
        Preprocessing.from_json(document, where="file")


def test_unknown_and_missing_keys_are_refused() -> None:
    with pytest.raises(CheckpointError, match="unknown key 'means'"):
        Preprocessing.from_json(IMAGENET.to_json() | {"means": []}, where="file")
    for key in IMAGENET.to_json():
        with pytest.raises(CheckpointError, match=f"key '{key}' is missing"):
            Preprocessing.from_json({k: v for k, v in IMAGENET.to_json().items() if k != key}, where="file")
