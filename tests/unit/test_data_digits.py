"""The embedded digits: content, split, speed of loading, and what importing them costs."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import eqdeploy
from eqdeploy.data import DIGITS_PREPROCESSING, LoadOptions, Preprocessing, load_data
from eqdeploy.data.digits import load_digits
from eqdeploy.errors import DataError, UsageError


def test_splits_are_disjoint_and_cover_the_set() -> None:
    train, test = load_digits("train"), load_digits("test")
    assert train.images.shape == (1200, 1, 8, 8)
    assert test.images.shape == (597, 1, 8, 8)
    assert train.images.dtype == np.uint8
    assert max(train.images.max(), test.images.max()) == 16
    counts = np.bincount(np.concatenate([train.labels, test.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the data set's own description
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_split_is_the_documented_permutation() -> None:
    with np.load(str(importlib.resources.files("eqdeploy.embedded") / "digits.npz"), allow_pickle=False) as archive:
        held_out = archive["held_out"]
    assert set(np.flatnonzero(held_out)) == set(np.random.RandomState(0).permutation(1797)[:597])


def test_arrays_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    with np.load(str(importlib.resources.files("eqdeploy.embedded") / "digits.npz"), allow_pickle=False) as archive:
        assert np.array_equal(archive["images"], digits.images)
        assert np.array_equal(archive["labels"], digits.target)


def test_preprocessing_normalizes_the_training_images() -> None:
    values = DIGITS_PREPROCESSING.apply(load_digits("train").images)
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01


def test_loading_takes_less_than_50_ms() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        load_digits("train")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_importing_the_package_needs_neither_torch_nor_pillow() -> None:
    code = (
        "import sys; from eqdeploy.data.digits import load_digits; import eqdeploy.data; load_digits('test');"
        "sys.exit(sorted({'torch', 'PIL', 'pydantic'} & set(sys.modules)) != [])"
    )
    root = Path(eqdeploy.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_limit_spreads_over_the_split() -> None:
    whole = load_digits("test")
    part = load_digits("test", limit=100)
    assert len(part) == 100
    assert np.array_equal(part.images, whole.spread(100).images)
    assert set(part.labels) == set(range(10))
    assert len(load_digits("test", limit=10_000)) == 597


def test_network_of_another_size_is_refused_unless_resizing_is_asked_for() -> None:
    other = Preprocessing((16, 16), 1, (0.0,), (1.0,), 1 / 16)
    with pytest.raises(DataError, match=r"digits \(test\): image of 8x8 pixels, the network reads 16x16"):
        load_data("digits", split="test", preprocessing=other)
    resizing = Preprocessing((16, 16), 1, (0.0,), (1.0,), 1 / 16, resize_shorter_side=16)
    assert load_data("digits", split="test", preprocessing=resizing, limit=3).images.shape == (3, 1, 16, 16)
    colour = Preprocessing((8, 8), 3, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(DataError, match=r"the images have 1 channel\(s\), the network reads 3.*--data"):
        load_data("digits", split="test", preprocessing=colour)


@pytest.mark.parametrize(("split", "limit"), [("dev", None), ("", None), ("test", 0), ("test", -3)])
def test_wrong_split_or_limit_is_a_usage_error(split: str, limit: int | None) -> None:
    with pytest.raises(UsageError):
        load_data("digits", split=split, preprocessing=DIGITS_PREPROCESSING, limit=limit)


def test_examples_in_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(eqdeploy.__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    function, loading = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(loading, names)
    inputs = names["inputs"]
    assert isinstance(inputs, np.ndarray)
    assert (inputs.dtype, inputs.shape) == (np.float32, (597 % 128, 1, 8, 8))
    (tmp_path / "documented_data.py").write_text(function)
    monkeypatch.chdir(tmp_path)
    options = LoadOptions(run_code=True)
    data = load_data("documented_data:blobs", split="train", preprocessing=DIGITS_PREPROCESSING, options=options)
    assert (data.images.shape, data.classes) == ((200, 1, 8, 8), ("plain", "blob"))
