from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqdeploy.data import (
    InputPreprocessing,
    LabelledImages,
    NamedPreprocessing,
    TokenPreprocessing,
    ValuePreprocessing,
    load_images,
)
from eqdeploy.data.arrays import function_arrays
from eqdeploy.errors import DataError, UsageError

SERIES = ValuePreprocessing((3, 4))
WORDS = TokenPreprocessing((6,), 100)
BOTH = NamedPreprocessing((("series", SERIES), ("words", WORDS)))


def series(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3, 4))


def words(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 100, (count, 6))


def load(path: Path, split: str = "test", preprocessing: InputPreprocessing = SERIES, **options: Any) -> LabelledImages:
    return load_images(str(path), split=split, preprocessing=preprocessing, **options)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_an_archive_holds_inputs_and_labels(tmp_path: Path) -> None:
    data = load(save(tmp_path / "a.npz", inputs=series(5), labels=[0, 2, 1, 0, 0]), limit=3)
    assert np.array_equal(data.images, series(5)[[0, 1, 3]].astype(np.float32))
    assert data.labels.tolist() == [0, 2, 0]
    assert data.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    "names",
    [
        ("train_inputs", "train_labels", "val_inputs", "val_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_an_archive_of_all_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = dict(zip(names, (series(3), np.array([0, 1, 4]), series(2, 1), np.array([1, 0])), strict=True))
    path = save(tmp_path / "a.npz", **arrays)
    train, test = load(path, "train"), load(path)
    assert np.array_equal(train.images, series(3).astype(np.float32))
    assert np.array_equal(test.images, series(2, 1).astype(np.float32))
    assert train.classes == test.classes == ("0", "1", "2", "3", "4")


def test_a_folder_holds_an_archive_for_each_split(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", inputs=words(3), labels=[0, 1, 2])
    save(tmp_path / "test.npz", inputs=words(2, 1), labels=[0, 0])
    train, test = (load(tmp_path, split, WORDS) for split in ("train", "test"))
    assert (str(train.images.dtype), len(train), len(test)) == ("int64", 3, 2)
    assert train.classes == test.classes == ("0", "1", "2")


def test_several_inputs_are_arrays_by_their_names(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", words=words(4), series=series(4), labels=[0, 1, 0, 1])
    data = load(path, preprocessing=BOTH)
    assert data.images.dtype.names == ("series", "words")
    assert np.array_equal(data.images["words"], words(4))
    assert np.array_equal(data.images["series"], series(4).astype(np.float32))
    assert data.digest != load(path, preprocessing=BOTH, limit=3).digest
    split = save(tmp_path / "b.npz", train_words=words(4), train_series=series(4))
    assert not load(split, "train", BOTH).is_labelled


def test_targets_are_float_labels_without_classes(tmp_path: Path) -> None:
    data = load(save(tmp_path / "a.npz", inputs=series(2), labels=np.array([[0.5, 1], [2, 3]])))
    assert data.labels.dtype == np.float32
    assert data.labels.tolist() == [[0.5, 1], [2, 3]]
    assert (data.classes, data.is_labelled, data.has_targets) == ((), False, True)
    assert not load(save(tmp_path / "b.npz", inputs=series(2))).has_targets


@pytest.mark.parametrize(
    ("arrays", "preprocessing", "message"),
    [
        ({"images": np.zeros((2, 3, 4))}, SERIES, "holds no array 'inputs'.*the archive holds images"),
        ({"inputs": np.zeros((2, 4, 3))}, SERIES, r"shape \(4, 3\), the network reads \(3, 4\)"),
        ({"inputs": np.full((2, 3, 4), np.inf)}, SERIES, "input 0 holds NaN or infinite"),
        ({"inputs": np.zeros((2, 3, 4), complex)}, SERIES, "holds complex128"),
        ({"inputs": np.zeros((2, 6))}, WORDS, "holds float64.*integers fit"),
        ({"inputs": np.full((2, 6), 100)}, WORDS, "ids run from 100 to 100"),
        ({"inputs": np.zeros((0, 3, 4))}, SERIES, "at least one"),
        ({"series": np.zeros((2, 3, 4))}, BOTH, "holds no array 'words'"),
        ({"series": np.zeros((2, 3, 4)), "words": np.zeros((3, 6), int)}, BOTH, "series 2, words 3.*equally many"),
        ({"inputs": np.zeros((2, 3, 4)), "labels": np.zeros(3, int)}, SERIES, "labels have shape"),
        ({"train_inputs": np.zeros((2, 3, 4))}, SERIES, "'inputs' of the split 'test'"),
    ],
)
def test_wrong_archives_are_refused(
    tmp_path: Path, arrays: dict[str, Any], preprocessing: InputPreprocessing, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(save(tmp_path / "a.npz", **arrays), preprocessing=preprocessing)


def test_what_holds_no_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"has no test.npz.*holding 'inputs'"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"no such file.*no images"):
        load(tmp_path / "missing.npz")
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"not a .npz archive"):
        load(tmp_path / "a.csv")
    with pytest.raises(DataError, match="reads no images"):
        load_images("digits", split="test", preprocessing=SERIES)


def test_a_function_may_return_arrays_or_pairs() -> None:
    arrays = {"series": series(3), "words": words(3), "labels": np.arange(3)}
    pairs = [({"series": arrays["series"][i], "words": arrays["words"][i]}, i) for i in range(3)]
    for returned in (arrays, pairs):
        found = function_arrays(returned, BOTH, where="f")
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert function_arrays([(series(1)[0], 0.5)], SERIES, where="f")["labels"].tolist() == [0.5]


def test_what_a_function_must_not_return() -> None:
    with pytest.raises(UsageError, match=r"returned int.*arrays 'inputs' and 'labels'"):
        function_arrays(3, SERIES, where="f")
    with pytest.raises(DataError, match=r"f\[1\]: has shape \(2,\), the first one \(3,\)"):
        function_arrays([(np.zeros(3), 0), (np.zeros(2), 0)], SERIES, where="f")
    with pytest.raises(UsageError, match="KeyError"):
        function_arrays([({"series": np.zeros(3)}, 0)], BOTH, where="f")
    with pytest.raises(DataError, match="holds no samples"):
        function_arrays([], SERIES, where="f")
