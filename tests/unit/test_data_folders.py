"""Data sets as folders: layouts, order, decoding, CIFAR-10, and everything that can be wrong on disk."""

from __future__ import annotations

import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from eqdeploy.data import LabelledImages, Preprocessing, load_data, load_images
from eqdeploy.data.images import MAX_PIXELS
from eqdeploy.errors import DataError, MissingDependencyError

COLOUR = Preprocessing((4, 5), 3, (0.0,) * 3, (1.0,) * 3)
CIFAR = Preprocessing((32, 32), 3, (0.0,) * 3, (1.0,) * 3)


def write(path: Path, seed: int = 0, size: tuple[int, int] = (4, 5)) -> NDArray[np.uint8]:
    """Write a random RGB image and return its pixels as (C, H, W)."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image.transpose(2, 0, 1)


def load(root: Path, split: str = "test", preprocessing: Preprocessing = COLOUR) -> LabelledImages:
    return load_images(str(root), split=split, preprocessing=preprocessing)


def test_class_folders_in_splits(tmp_path: Path) -> None:
    expected = [
        write(tmp_path / "test" / name, seed) for seed, name in enumerate(("cat/1.png", "cat/2.png", "dog/0.png"))
    ]
    write(tmp_path / "train" / "cat" / "9.png")
    write(tmp_path / "train" / "dog" / "9.png")
    data = load_data(str(tmp_path), split="test", preprocessing=COLOUR)
    assert np.array_equal(data.images, expected)
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1], ("cat", "dog"))
    assert len(load(tmp_path, "train")) == 2


@pytest.mark.parametrize("name", ["val", "validation"])
def test_test_split_may_be_called_otherwise(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "cat" / "1.png")
    write(tmp_path / "train" / "cat" / "1.png")
    write(tmp_path / "train" / "cat" / "2.png")
    assert len(load(tmp_path)) == 1


def test_without_splits_every_split_is_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "b" / "1.png")
    write(tmp_path / "a" / "deeper" / "1.PNG")
    assert load(tmp_path, "train").digest == load(tmp_path, "test").digest
    assert load(tmp_path).classes == ("a", "b")


def test_classes_are_ordered_as_text_and_files_by_path(tmp_path: Path) -> None:
    for name in ("2", "10", "1"):
        write(tmp_path / name / "x.png")
    assert load(tmp_path).classes == ("1", "10", "2")


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.png")
    for name in ("a/notes.txt", "a/._x.png", "a/.cache/x.png", ".hidden/x.png", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing")
    data = load(tmp_path)
    assert (len(data), data.classes) == (1, ("a",))


def test_class_called_train_stays_a_class(tmp_path: Path) -> None:
    write(tmp_path / "bus" / "x.png")
    write(tmp_path / "train" / "x.png")
    assert load(tmp_path).classes == ("bus", "train")


def test_missing_split_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "x.png")
    with pytest.raises(DataError, match=r"has no folder 'test' \(it has train\)"):
        load(tmp_path)


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    for name in ("train/a/x.png", "train/b/x.png", "test/b/x.png"):
        write(tmp_path / name)
    with pytest.raises(DataError, match="class folder 'a' is not in both 'test' and 'train'"):
        load(tmp_path)


@pytest.mark.parametrize("folder", [".", "test"])
def test_unlabelled_images(tmp_path: Path, folder: str) -> None:
    expected = [write(tmp_path / folder / f"{index}.png", index) for index in range(3)]
    data = load(tmp_path)
    assert np.array_equal(data.images, expected)
    assert not data.is_labelled
    with pytest.raises(DataError, match="have no labels"):
        load_data(str(tmp_path), split="test", preprocessing=COLOUR)


def test_unlabelled_test_beside_labelled_train(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "x.png")
    write(tmp_path / "test" / "x.png")
    assert load(tmp_path, "train").is_labelled
    assert not load(tmp_path, "test").is_labelled


def test_limit_spreads_over_the_classes_and_decodes_only_those(tmp_path: Path) -> None:
    for label, name in enumerate("abc"):
        write(tmp_path / name / "0.png", label)
        (tmp_path / name / "1.png").write_bytes(b"damaged")
    data = load_images(str(tmp_path), split="test", preprocessing=COLOUR, limit=3)
    assert data.labels.tolist() == [0, 1, 2]


def test_grey_network_reads_luminance_and_colour_network_reads_grey_files(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "x.png")
    grey = Preprocessing((4, 5), 1, (0.0,), (1.0,))
    assert load(tmp_path, preprocessing=grey).images.tolist() == [[[[76] * 5] * 4]]
    Image.new("L", (5, 4), 9).save(tmp_path / "x.png")
    assert (load(tmp_path).images == 9).all()


def test_resizing_is_bilinear_on_the_shorter_side_with_a_centre_crop(tmp_path: Path) -> None:
    stored = write(tmp_path / "x.png", size=(20, 41))
    data = load(tmp_path, preprocessing=Preprocessing((8, 8), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=10))
    whole = Image.fromarray(stored.transpose(1, 2, 0)).resize((20, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(data.images[0], np.asarray(whole).transpose(2, 0, 1)[:, 1:9, 6:14])


def test_images_of_the_right_size_are_not_resized(tmp_path: Path) -> None:
    stored = write(tmp_path / "x.png", size=(8, 8))
    data = load(tmp_path, preprocessing=Preprocessing((8, 8), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=10))
    assert np.array_equal(data.images[0], stored)


def test_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.png", size=(6, 7))
    with pytest.raises(DataError, match=r"a/x\.png: image of 6x7 pixels, the network reads 4x5 .*resize_shorter_side"):
        load(tmp_path)


def test_elongated_image_is_not_blown_up(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="too elongated"):
        load(tmp_path, preprocessing=Preprocessing((64, 64), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=2000))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a/1\.png: not a readable image"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "ppm"])
def test_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    write(path, size=(4, 5))
    assert load(tmp_path).images.shape == (1, 3, 4, 5)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"x\.{suffix}: not a readable image"):
        load(tmp_path)


@pytest.mark.parametrize("side", [10_000, 40_000])  # above our limit, and above Pillow's own
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.png: .*({MAX_PIXELS:,}|decompression bomb)"):
        load(tmp_path)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        load(tmp_path)


def test_network_with_other_channels_cannot_read_files(tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    with pytest.raises(DataError, match="image files have 1 or 3 channels, the network reads 2"):
        load(tmp_path, preprocessing=Preprocessing((4, 5), 2, (0.0,) * 2, (1.0,) * 2))


def test_empty_and_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load_images("nowhere", split="test", preprocessing=COLOUR)
    with pytest.raises(DataError, match="holds no images and no class folders"):
        load(tmp_path)
    write(tmp_path / "a" / "x.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: class folder without images"):
        load(tmp_path)


@pytest.mark.parametrize("reference", ["x" * 5000, "a\0b", ""])
def test_references_that_are_no_paths(reference: str) -> None:
    with pytest.raises(DataError):
        load_images(reference, split="test", preprocessing=COLOUR)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.png")
    write(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"both class folders and images \(stray\.png\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["data.tar.gz", "data.zip", "model.pt", "data.npy"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="not a data set that can be read"):
        load(tmp_path / name)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"eqdeploy\[images\]"):
        load(tmp_path)


def write_cifar(folder: Path) -> NDArray[np.uint8]:
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(0, 256, (6, 5, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    for index in range(5):
        records[index].tofile(folder / f"data_batch_{index + 1}.bin")
    records[5].tofile(folder / "test_batch.bin")
    return records


@pytest.mark.parametrize("nested", [False, True])
def test_cifar_binary_version(tmp_path: Path, nested: bool) -> None:
    records = write_cifar(tmp_path / "cifar-10-batches-bin")
    root = tmp_path if nested else tmp_path / "cifar-10-batches-bin"
    train, test = load(root, "train", CIFAR), load(root, "test", CIFAR)
    assert np.array_equal(train.images.reshape(25, -1), records[:5].reshape(25, -1)[:, 1:])
    assert np.array_equal(test.labels, records[5, :, 0])
    assert test.classes[3] == "cat"


def test_cifar_damaged_or_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    records = write_cifar(folder)
    with pytest.raises(DataError, match="image of 32x32 pixels, the network reads 4x5"):
        load(folder)
    (folder / "test_batch.bin").write_bytes(records[5].tobytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin: .* no whole number of records"):
        load(folder, "test", CIFAR)
    records[0, 3, 0] = 10
    records[0].tofile(folder / "data_batch_1.bin")
    with pytest.raises(DataError, match="image 3 has label 10"):
        load(folder, "train", CIFAR)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin: cannot be read"):
        load(folder, "train", CIFAR)


class _Trap:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[Path], tuple[str]]:
        return (_touch, (str(self.path),))  # type: ignore[return-value]


def _touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("nested", [False, True])
def test_cifar_pickles_are_refused_unopened(tmp_path: Path, nested: bool) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match="never loaded.*binary version"):
        load(tmp_path if nested else folder, "test", CIFAR)
    assert not (tmp_path / "sprung").exists()
