"""CIFAR-10 and CIFAR-100 in both versions, as their authors and torchvision lay them out."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eqdeploy.data import LabelledImages, Preprocessing, load_images
from eqdeploy.errors import DataError, UsageError
from tests.unit.data_support import SMALL

CIFAR = Preprocessing((32, 32), 3, (0.0,) * 3, (1.0,) * 3)
NAMES = {"fine": [f"fine {index}" for index in range(100)], "coarse": [f"coarse {index}" for index in range(20)]}


def load(root: Path | str, split: str = "test", preprocessing: Preprocessing = CIFAR) -> LabelledImages:
    return load_images(str(root), split=split, preprocessing=preprocessing)


def images_of(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_binary(folder: Path) -> NDArray[np.uint8]:
    """CIFAR-10's binary version with five images a file; return the records."""
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(0, 256, (6, 5, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    for index in range(5):
        records[index].tofile(folder / f"data_batch_{index + 1}.bin")
    records[5].tofile(folder / "test_batch.bin")
    return records


def write_python(folder: Path, protocol: int = 2) -> None:
    """CIFAR-10's Python version with the same records as :func:`write_binary`."""
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(0, 256, (6, 5, 3073), dtype=np.uint8)
    for part, name in zip(records, [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"], strict=True):
        content = {
            b"batch_label": b"one of several",
            b"labels": (part[:, 0] % 10).tolist(),
            b"data": np.ascontiguousarray(part[:, 1:]),
            b"filenames": [b"some.png"] * 5,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"airplane"]}, protocol=protocol))


def write_hundred(folder: Path, *, binary: bool) -> tuple[NDArray[np.uint8], list[int], list[int]]:
    """CIFAR-100 with seven images a split; return images and labels of the test split."""
    folder.mkdir(parents=True)
    fine, coarse = [99, 0, 5, 7, 8, 50, 99], [19, 1, 2, 3, 0, 4, 19]
    for seed, split in enumerate(("train", "test")):
        images = images_of(7, seed)
        if binary:
            records = np.column_stack([np.array([coarse, fine], np.uint8).T, images])
            records.tofile(folder / f"{split}.bin")
        else:
            content = {"fine_labels": fine, "coarse_labels": coarse, "data": images, "filenames": ["x"] * 7}
            (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    if binary:
        for kind, names in NAMES.items():
            (folder / f"{kind}_label_names.txt").write_text("\n".join(names).replace(" ", "_") + "\n")
    else:
        content = {f"{kind}_label_names": names for kind, names in NAMES.items()}
        (folder / "meta").write_bytes(pickle.dumps(content, protocol=2))
    return images, fine, coarse


@pytest.mark.parametrize("nested", [False, True])
def test_binary_version(tmp_path: Path, nested: bool) -> None:
    records = write_binary(tmp_path / "cifar-10-batches-bin")
    root = tmp_path if nested else tmp_path / "cifar-10-batches-bin"
    train, test = load(root, "train"), load(root, "test")
    assert np.array_equal(train.images.reshape(25, -1), records[:5].reshape(25, -1)[:, 1:])
    assert np.array_equal(test.labels, records[5, :, 0])
    assert test.classes[3] == "cat"


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_both_versions_are_the_same_data(tmp_path: Path, nested: bool, protocol: int) -> None:
    write_binary(tmp_path / "binary")
    write_python(tmp_path / "cifar-10-batches-py", protocol)
    root = tmp_path if nested else tmp_path / "cifar-10-batches-py"
    for split in ("train", "test"):
        assert load(root, split).digest == load(tmp_path / "binary", split).digest


def test_damaged_or_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    records = write_binary(folder)
    with pytest.raises(DataError, match="image of 32x32 pixels, the network reads 4x5"):
        load(folder, preprocessing=SMALL)
    (folder / "test_batch.bin").write_bytes(records[5].tobytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin: .* no whole number of records"):
        load(folder)
    records[0, 3, 0] = 10
    records[0].tofile(folder / "data_batch_1.bin")
    with pytest.raises(DataError, match="image 3 has label 10"):
        load(folder, "train")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin: cannot be read"):
        load(folder, "train")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_cifar_100_with_either_labels(tmp_path: Path, binary: bool, nested: bool) -> None:
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    images, fine, coarse = write_hundred(folder, binary=binary)
    root = str(tmp_path if nested else folder)
    for reference, labels, kind in (
        (root, fine, "fine"),
        (f"{root}#fine", fine, "fine"),
        (f"{root}#coarse", coarse, "coarse"),
    ):
        data = load(reference)
        assert np.array_equal(data.images.reshape(7, -1), images)
        assert data.labels.tolist() == labels
        assert [name.replace("_", " ") for name in data.classes] == NAMES[kind]
    assert load(root, "train").digest != load(root).digest


def test_labels_are_chosen_only_where_there_is_a_choice(tmp_path: Path) -> None:
    write_binary(tmp_path / "ten")
    with pytest.raises(UsageError, match="only one kind of labels.*#coarse"):
        load(f"{tmp_path}/ten#coarse")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="holds no CIFAR-100"):
        load(f"{tmp_path}/photos#fine")
    with pytest.raises(DataError, match="no such folder"):
        load(f"{tmp_path}/nowhere#fine")
    shutil.copytree(tmp_path / "ten", tmp_path / "odd#coarse")
    assert len(load(f"{tmp_path}/odd#coarse")) == 5


def test_two_data_sets_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    write_hundred(tmp_path / "cifar-100-python", binary=False)
    with pytest.raises(DataError, match="both CIFAR-10 and CIFAR-100 .*cifar-10-batches-bin, cifar-100-python"):
        load(tmp_path)
    assert len(load(tmp_path / "cifar-100-python")) == 7


def test_folders_of_images_called_train_and_test_are_no_cifar_100(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"labels": [1, 2, 3, 4]}, "'labels' is not a list of 5 classes"),
        ({b"labels": [1, 2, 3, 4, -1]}, "'labels' is not a list of 5 classes"),
        ({b"labels": [1, 2, 3, 4, "5"]}, "'labels' is not a list of 5 classes"),
        ({b"labels": [1, 2, 3, 4, 10]}, "image 4 has label 10"),
        ({b"data": images_of(5)[:, 1:]}, "'data' is not an array"),
        ({b"data": images_of(5).reshape(5, 3, 32, 32)}, "'data' is not an array"),
        ({b"data": [1, 2]}, "'data' is not an array"),
        ({b"data": images_of(5).astype(np.float32)}, "never loaded"),
    ],
)
def test_wrong_content_of_the_python_version(tmp_path: Path, change: dict[bytes, Any], message: str) -> None:
    content = {b"labels": [0] * 5, b"data": images_of(5)} | change
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message):
        load(tmp_path)
