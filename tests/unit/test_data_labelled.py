"""Data sets in memory: checks, digest, subsets, batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eqdeploy.data import LabelledImages, batches
from eqdeploy.data.labelled import spread_indices
from eqdeploy.errors import DataError, UsageError


def make(
    images: NDArray[np.generic] | None = None,
    labels: list[int] | None = None,
    classes: tuple[str, ...] = ("a", "b"),
) -> LabelledImages:
    stored = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2) if images is None else images
    numbers = np.array([0, 1] if labels is None else labels, np.int64)
    return LabelledImages(stored, numbers, classes, "set")


@pytest.mark.parametrize("position", [(0, 0, 0, 0), (1, 2, 1, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(position: tuple[int, int, int, int], value: float) -> None:
    images = np.zeros((2, 3, 2, 2), np.float32)
    images[position] = value
    with pytest.raises(DataError, match=rf"set: image {position[0]} holds NaN or infinite pixels"):
        make(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros(2, np.uint8), r"\(2,\) in uint8"),
        (np.zeros((2, 1, 2, 2)), "float64"),
        (np.zeros((0, 1, 2, 2), np.uint8), "holds no images"),
        (np.zeros((2, 1, 0, 2), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_no_images_are_refused(images: NDArray[np.generic], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(images)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0], ("a", "b"), "one for each image"),
        ([0, 2], ("a", "b"), "image 1 has label 2, but labels run from 0 to 1"),
        ([-1, 0], ("a", "b"), "image 0 has label -1"),
        ([-1, -1], ("a", "b"), "image 0 has label -1"),
        ([0, -1], (), "image 0 has label 0"),
    ],
)
def test_labels_without_class_are_refused(labels: list[int], classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(labels=labels, classes=classes)


def test_unlabelled_images_have_no_classes() -> None:
    data = make(labels=[-1, -1], classes=())
    assert not data.is_labelled
    with pytest.raises(DataError, match="set: the images have no labels"):
        data.require_labels()
    labelled = make()
    assert labelled.require_labels() is labelled


def test_targets_are_labels_but_no_classes() -> None:
    data = LabelledImages(make().images, np.zeros((2, 3), np.float32), (), "set")
    with pytest.raises(DataError, match=r"set: the labels are numbers, not classes \(this needs a class for each"):
        data.require_labels()


def test_digest_depends_on_content_alone() -> None:
    data = make()
    reordered = np.asfortranarray(data.images)
    assert make(reordered).digest == data.digest
    changed = data.images.copy()
    changed[1, 2, 1, 1] += 1
    others = [
        make(changed),
        make(data.images.astype(np.float32)),
        make(data.images.reshape(2, 3, 1, 4)),
        make(labels=[1, 0]),
        make(classes=("a", "c")),
    ]
    assert len({data.digest, *(other.digest for other in others)}) == 6


@given(st.integers(1, 300), st.integers(1, 400))
def test_spread_is_ascending_and_even(total: int, count: int) -> None:
    picked = spread_indices(total, count)
    assert len(picked) == min(total, count)
    gaps = np.diff(picked)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert picked[0] == 0
    assert picked[-1] < total


def test_spread_of_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        make().spread(0)


@given(st.integers(0, 20), st.integers(1, 25))
def test_batches_put_together_are_the_whole(count: int, size: int) -> None:
    images = np.arange(count)
    parts = list(batches(images, size))
    assert all(len(part) == size for part in parts[:-1])
    assert np.array_equal(np.concatenate([images[:0], *parts]), images)


def test_batches_need_a_size() -> None:
    with pytest.raises(ValueError, match="positive"):
        list(batches(np.arange(3), 0))
