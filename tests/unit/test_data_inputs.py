from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.data import (
    InputPreprocessing,
    NamedPreprocessing,
    Preprocessing,
    TokenPreprocessing,
    ValuePreprocessing,
    read_preprocessing,
)
from eqdeploy.errors import CheckpointError, DataError

IMAGES = Preprocessing((4, 5), 1, (0.5,), (0.25,))
SERIES = ValuePreprocessing((3, 4), (0.0, 1.0, 2.0), (1.0, 2.0, 4.0))
WORDS = TokenPreprocessing((6,), 100)


def test_values_are_normalized_by_feature_in_float32() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 4))
    mean, std = (np.array(numbers, np.float32)[:, None] for numbers in (SERIES.mean, SERIES.std))
    expected = (values.astype(np.float32) - mean) / std
    assert np.array_equal(SERIES.apply(values), expected)
    last = ValuePreprocessing((4, 3), SERIES.mean, SERIES.std, feature_axis=1)
    assert np.array_equal(last.apply(values.transpose(0, 2, 1)), expected.transpose(0, 2, 1))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2))
def test_values_without_mean_stay_what_they_are(values: list[float]) -> None:
    stored = np.array([values], np.float32)
    result = ValuePreprocessing((2,)).apply(stored)
    assert np.array_equal(result, stored)
    assert result is not stored


def test_ids_pass_through_as_int64() -> None:
    ids = np.array([[0, 99, 5, 6, 7, 8]], np.uint16)
    result = WORDS.apply(ids)
    assert result.dtype == np.int64
    assert np.array_equal(result, ids)


@pytest.mark.parametrize("ids", [[[0, 1, 2, 3, 4, 100]], [[-1, 1, 2, 3, 4, 5]]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[list[int]]) -> None:
    with pytest.raises(DataError, match="the vocabulary from 0 to 99.*set vocabulary"):
        WORDS.apply(np.array(ids))


@given(st.integers(1, 1000), st.integers(1, 8))
def test_an_example_holds_only_ids_of_the_vocabulary(vocabulary: int, length: int) -> None:
    preprocessing = TokenPreprocessing((length,), vocabulary)
    example = preprocessing.example(2)
    assert np.array_equal(preprocessing.apply(example), example)
    assert example.max() == vocabulary - 1


def test_several_inputs_are_records() -> None:
    both = NamedPreprocessing((("series", SERIES), ("words", WORDS)))
    stored = np.zeros(2, [("series", np.float32, (3, 4)), ("words", np.int64, (6,))])
    stored["series"], stored["words"] = 1.0, 7
    result = both.apply(stored)
    assert result.dtype.names == ("series", "words")
    assert np.array_equal(result["series"], SERIES.apply(stored["series"]))
    assert np.array_equal(result["words"], stored["words"])
    stored["words"] = 100
    with pytest.raises(DataError, match="words: ids run"):
        both.apply(stored)
    with pytest.raises(DataError, match="words: the data have no such input"):
        both.apply(stored[["series"]])


@pytest.mark.parametrize(
    "preprocessing",
    [IMAGES, SERIES, ValuePreprocessing((7,)), WORDS, NamedPreprocessing((("a", IMAGES), ("b", WORDS)))],
)
def test_json_is_read_back_exactly(preprocessing: InputPreprocessing) -> None:
    assert read_preprocessing(preprocessing.to_json(), where="here") == preprocessing


def test_images_have_no_kind() -> None:
    assert "kind" not in IMAGES.to_json()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "sounds"}, "unknown kind 'sounds'.*values, tokens, named"),
        ({"kind": ["values"]}, "unknown kind"),
        ({**SERIES.to_json(), "scale": 1}, "'scale' is unknown or missing"),
        ({"kind": "tokens", "shape": [3]}, "'vocabulary' is unknown or missing"),
        ({**WORDS.to_json(), "vocabulary": True}, "vocabulary must hold integers"),
        ({**WORDS.to_json(), "shape": []}, "shape must hold 1 to 5"),
        ({**SERIES.to_json(), "shape": [3, 0]}, "shape must hold integers"),
        ({**SERIES.to_json(), "std": [1.0, 0.0, 1.0]}, "std must be positive"),
        ({**SERIES.to_json(), "std": []}, "std must hold 3 numbers.*feature_axis 0"),
        ({**SERIES.to_json(), "feature_axis": 2}, "feature_axis must be an axis of shape, 0 to 1"),
        ({**SERIES.to_json(), "mean": [float("nan"), 0.0, 0.0]}, "mean must hold finite"),
        ({"kind": "named", "inputs": []}, "1 to 16 inputs"),
        ({"kind": "named", "inputs": {}}, "a list 'inputs'"),
        ({"kind": "named", "inputs": [{"name": "labels", **WORDS.to_json()}]}, "must be named like arguments"),
        ({"kind": "named", "inputs": [{"name": "a", **WORDS.to_json()}] * 2}, "each once"),
        ({"kind": "named", "inputs": [{"name": "a", "kind": "named", "inputs": []}]}, "a list 'inputs'"),
        ({"kind": "named", "inputs": [{"name": "a", "kind": "tokens"}]}, "here: a: key"),
    ],
)
def test_wrong_json_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_preprocessing(data, where="here")
