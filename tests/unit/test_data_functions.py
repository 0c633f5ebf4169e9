"""Data from a function of the user's own: what it may return, and what is said when it does not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from eqdeploy.data import LabelledImages, LoadOptions, Preprocessing, load_images
from eqdeploy.errors import DataError, UsageError
from tests.unit.data_support import SMALL

SOURCE = """
import numpy as np
import torch
from PIL import Image

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)


def arrays(split):
    first = 0 if split == "train" else 4
    return {"images": IMAGES[first:], "labels": np.arange(6)[first:] % 2, "classes": np.array(["a", "b"])}


def tensors(split):
    return {"images": torch.from_numpy(IMAGES), "labels": torch.arange(6) % 2}


class Pairs:
    classes = ["cat", "dog"]

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 6:
            raise IndexError(index)
        return self.make(IMAGES[index], index), index % 2


def pillow(split):
    return Pairs(lambda image, index: Image.fromarray(image.transpose(1, 2, 0)))


def tensor(split):
    return Pairs(lambda image, index: torch.from_numpy(image).float() / 255)


def channels_last(split):
    return Pairs(lambda image, index: image.transpose(1, 2, 0))


def nan(split):
    return Pairs(lambda image, index: image * np.float32("nan" if index == 3 else 1))


def sizes(split):
    return Pairs(lambda image, index: image[:, : 4 - index % 2])


def shapeless(split):
    return Pairs(lambda image, index: image[:2])


def failing(split):
    return Pairs(lambda image, index: {}["missing"])


def labels_below_zero(split):
    return {"images": IMAGES, "labels": np.arange(6) - 1}


def unlabelled(split):
    return {"images": IMAGES}


def unequal(split):
    return {"images": IMAGES, "labels": np.zeros(5, int)}


def nothing(split):
    return None


def empty(split):
    return []


def raising(split):
    raise ValueError("no disk")


def no_arguments():
    return arrays("train")


number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data", raising=False)


def load(
    name: str, split: str = "train", *, preprocessing: Preprocessing = SMALL, limit: int | None = None
) -> LabelledImages:
    options = LoadOptions(run_code=True)
    return load_images(f"own_data:{name}", split=split, preprocessing=preprocessing, limit=limit, options=options)


def expected() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)


def test_arrays_of_each_split() -> None:
    train, test = load("arrays"), load("arrays", "test")
    assert np.array_equal(train.images, expected())
    assert np.array_equal(test.images, expected()[4:])
    assert (test.labels.tolist(), test.classes) == ([0, 1], ("a", "b"))
    assert train.source == "own_data:arrays('train')"
    assert load("tensors").images.shape == (6, 3, 4, 5)
    assert not load("unlabelled").is_labelled


@pytest.mark.parametrize("name", ["pillow", "channels_last"])
def test_data_sets_of_pairs(name: str) -> None:
    data = load(name)
    assert np.array_equal(data.images, expected())
    assert (data.labels.tolist(), data.classes) == ([0, 1, 0, 1, 0, 1], ("cat", "dog"))
    assert load(name, limit=3).labels.tolist() == [0, 0, 0]


def test_tensors_in_floating_point() -> None:
    data = load("tensor")
    assert data.images.dtype == np.float32
    assert np.allclose(data.images * 255, expected(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nan", DataError, "image 3 holds NaN"),
        ("sizes", DataError, r"own_data:sizes\('train'\)\[1\]: image of shape \(3, 3, 5\) .* the first is \(3, 4, 5\)"),
        ("shapeless", DataError, "the network reads 3 channels"),
        ("labels_below_zero", DataError, "labels run from -1 to 4"),
        ("unequal", DataError, r"labels have shape \(5,\)"),
        ("empty", DataError, "holds no images"),
        ("failing", UsageError, "raised KeyError"),
        ("nothing", UsageError, "returned NoneType .*return a data set"),
        ("raising", UsageError, "raised ValueError: no disk"),
        ("no_arguments", UsageError, "must take 1 argument"),
        ("number", UsageError, "is a int, not a function"),
        ("missing", UsageError, "no attribute 'missing'"),
    ],
)
def test_mistakes_are_explained(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(name)


def test_modules_that_do_not_exist() -> None:
    options = LoadOptions(run_code=True)
    with pytest.raises(UsageError, match="no module named 'nowhere'"):
        load_images("nowhere.at:all", split="train", preprocessing=SMALL, options=options)


def test_code_runs_only_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "own_data.py").write_text("import pathlib; pathlib.Path('sprung').touch()")
    with pytest.raises(UsageError, match="run only when the command line asks for it .*--data own_data:arrays"):
        load_images("own_data:arrays", split="train", preprocessing=SMALL)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_that_name_comes_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "own_data:arrays", allow_pickle=False, images=expected(), labels=np.zeros(6, int))
    (tmp_path / "own_data:arrays.npz").rename(tmp_path / "own_data:arrays")
    with pytest.raises(DataError, match="not a data set that can be read"):
        load("arrays")
