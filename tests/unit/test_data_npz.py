"""Data sets in archives: both layouts, every shape, and files that are damaged or hostile."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from eqdeploy.data import LabelledImages, LoadOptions, Preprocessing, load_data, load_images
from eqdeploy.errors import DataError

GREY = Preprocessing((4, 5), 1, (0.0,), (1.0,))
COLOUR = Preprocessing((4, 5), 3, (0.0,) * 3, (1.0,) * 3)
RANDOM = np.random.default_rng(0)


def save(path: Path, arrays: dict[str, Any]) -> str:
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return str(path)


def load(reference: str, preprocessing: Preprocessing = COLOUR, limit: int | None = None) -> LabelledImages:
    return load_images(reference, split="test", preprocessing=preprocessing, limit=limit)


def pixels(*shape: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def test_grey_images_have_three_axes(tmp_path: Path) -> None:
    images = pixels(6, 4, 5)
    data = load(save(tmp_path / "a.npz", {"images": images, "labels": np.arange(6)}), GREY)
    assert np.array_equal(data.images, images[:, None])
    assert data.labels.tolist() == list(range(6))
    assert data.classes == ("0", "1", "2", "3", "4", "5")


def test_channels_first_and_channels_last_are_the_same_data(tmp_path: Path) -> None:
    images, labels = pixels(6, 3, 4, 5), np.array([0, 1, 1, 0, 2, 2], np.uint8)
    first = load(save(tmp_path / "first.npz", {"images": images, "labels": labels}))
    last = load(save(tmp_path / "last.npz", {"images": images.transpose(0, 2, 3, 1), "labels": labels}))
    assert np.array_equal(first.images, images)
    assert first.digest == last.digest
    assert last.images.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floating_point_images_become_float32(tmp_path: Path, dtype: str) -> None:
    images = np.linspace(-2, 2, 2 * 60).reshape(2, 3, 4, 5).astype(dtype)
    data = load(save(tmp_path / "a.npz", {"images": images, "labels": np.zeros(2, int)}))
    assert data.images.dtype == np.dtype(np.float32)
    assert np.array_equal(data.images, images.astype(np.float32))


def test_class_names_are_taken(tmp_path: Path) -> None:
    arrays = {"images": pixels(2, 3, 4, 5), "labels": np.array([1, 0]), "classes": np.array(["cat", "dog", "emu"])}
    assert load(save(tmp_path / "a.npz", arrays)).classes == ("cat", "dog", "emu")


def test_without_labels_the_images_are_unlabelled(tmp_path: Path) -> None:
    reference = save(tmp_path / "a.npz", {"images": pixels(2, 3, 4, 5)})
    assert not load(reference).is_labelled
    with pytest.raises(DataError, match=r"a\.npz: the images have no labels"):
        load_data(reference, split="test", preprocessing=COLOUR)


def test_limit_takes_images_and_labels_together(tmp_path: Path) -> None:
    images, labels = pixels(10, 3, 4, 5), np.arange(10)
    data = load(save(tmp_path / "a.npz", {"images": images, "labels": labels}), limit=4)
    assert data.labels.tolist() == [0, 2, 5, 7]
    assert np.array_equal(data.images, images[[0, 2, 5, 7]])


def test_folder_with_an_archive_for_each_split(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", {"images": pixels(3, 3, 4, 5), "labels": np.zeros(3, int)})
    save(tmp_path / "val.npz", {"images": pixels(2, 3, 4, 5), "labels": np.zeros(2, int)})
    assert len(load_data(str(tmp_path), split="train", preprocessing=COLOUR)) == 3
    assert len(load_data(str(tmp_path), split="test", preprocessing=COLOUR)) == 2
    (tmp_path / "val.npz").unlink()
    with pytest.raises(DataError, match=r"has no test\.npz \(it has train\)"):
        load_data(str(tmp_path), split="test", preprocessing=COLOUR)


def test_resizing_keeps_constant_images_constant(tmp_path: Path) -> None:
    wide = Preprocessing((4, 4), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=6)
    constant = np.broadcast_to(np.array([7, 8, 9], np.uint8).reshape(1, 3, 1, 1), (2, 3, 9, 20))
    for dtype in (np.uint8, np.float32):
        reference = save(tmp_path / "a.npz", {"images": constant.astype(dtype)})
        data = load(reference, wide)
        assert data.images.dtype == dtype
        assert np.array_equal(data.images, np.broadcast_to(constant[:, :, :1, :1], (2, 3, 4, 4)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": pixels(1)}, "holds neither 'images' nor 'jpeg'"),
        ({"images": pixels(0, 3, 4, 5)}, "holds no images"),
        ({"images": np.uint8(3)}, "holds no images"),
        ({"images": pixels(2, 60)}, r"shape \(2, 60\)"),
        ({"images": pixels(2, 4, 5)}, r"shape \(2, 4, 5\).*3 channels"),
        ({"images": pixels(2, 2, 4, 5)}, r"shape \(2, 2, 4, 5\).*3 channels"),
        ({"images": pixels(2, 3, 8, 8)}, "image of 8x8 pixels, the network reads 4x5"),
        ({"images": np.zeros((2, 3, 4, 5), np.int64)}, "images are int64"),
        ({"images": np.zeros((2, 3, 4, 5), complex)}, "images are complex128"),
        ({"images": np.full((2, 3, 4, 5), np.nan)}, "image 0 holds NaN"),
        ({"images": np.full((2, 3, 4, 5), 1e300)}, "image 0 holds NaN or infinite"),
        ({"images": np.array([{}, []], object)}, "Python objects"),
        ({"labels": np.array([0, "x"], object)}, "'labels' holds Python objects"),
        ({"labels": np.zeros(3, int)}, r"labels have shape \(3,\)"),
        ({"labels": np.zeros((2, 1), int)}, r"labels have shape \(2, 1\)"),
        ({"labels": np.zeros(2, complex)}, "complex128"),
        ({"labels": np.full(2, np.nan)}, "a label is NaN"),
        ({"labels": np.array([0, -2])}, "labels run from -2 to 0"),
        ({"labels": np.array([0, 1 << 60])}, "labels run from 0 to"),
        ({"labels": np.array([0, (1 << 64) - 1], np.uint64)}, "labels run from 0 to"),
        ({"labels": np.array([0, 2]), "classes": np.array(["a", "b"])}, "image 1 has label 2"),
        ({"labels": np.array([0, 1]), "classes": np.array([1, 2])}, "classes have shape"),
        ({"labels": np.array([0, 1]), "classes": np.array("ab")}, "classes have shape"),
        ({"labels": np.array([0, 1]), "classes": np.array([], str)}, "classes have shape"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    defaults = {} if "pixels" in arrays else {"images": pixels(2, 3, 4, 5)}
    reference = save(tmp_path / "a.npz", defaults | arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(reference)
    assert str(caught.value).startswith(reference)


def write_member(path: Path, header: bytes, body: bytes) -> str:
    """An archive with a hand-made array."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + body)
    return str(path)


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 3, 4, 5), }", "bytes, at most"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3, 4, 5), }", "truncated or has a wrong header"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -3, 4, 5), }", "truncated or has a wrong header"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3, 4, 5), }", "Python objects"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': 120, }", "not a readable"),
        ("{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 3, 4, 5), }", "not a readable"),
        ("__import__('os').abort()", "not a readable"),
        ("(" * 3000, "not a readable"),
    ],
)
def test_headers_are_checked_before_memory_is_taken(tmp_path: Path, header: str, message: str) -> None:
    reference = write_member(tmp_path / "a.npz", npy_header(header), bytes(120))
    with pytest.raises(DataError, match=message):
        load(reference)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a readable"):
        load(str(tmp_path / "a.npz"))


def test_every_truncation_and_every_damaged_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, {"images": pixels(2, 3, 4, 5), "labels": np.zeros(2, int)})
    content = path.read_bytes()
    expected = load(str(path)).digest
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            load(str(path))
    outcomes = set()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            outcomes.add(load(str(path)).digest)
        except DataError:
            outcomes.add("refused")
    assert "refused" in outcomes
    unlabelled = LabelledImages(load_plain(content), np.full(2, -1), (), "x").digest  # the name of an array damaged
    assert outcomes <= {"refused", expected, unlabelled}


def load_plain(content: bytes) -> NDArray[np.uint8]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        images: NDArray[np.uint8] = archive["images"]
        return images


def encode(image: NDArray[np.uint8], form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form)
    return stream.getvalue()


def pack(files: list[bytes]) -> dict[str, Any]:
    offsets = np.cumsum([0, *(len(file) for file in files)])
    return {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets}


def test_packed_layout(tmp_path: Path) -> None:
    images = pixels(3, 4, 5, 3)
    arrays = pack([encode(image) for image in images])
    arrays |= {"labels": np.array([1, 0, 1], np.uint8), "classes": np.array(["a", "b"])}
    reference = save(tmp_path / "a.npz", arrays)
    data = load(reference)
    assert np.array_equal(data.images, images.transpose(0, 3, 1, 2))
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("a", "b"))
    assert np.array_equal(load(reference, limit=2).images, data.images[[0, 1]])


def test_packed_jpeg_is_decoded(tmp_path: Path) -> None:
    flat = np.full((4, 5, 3), (200, 100, 50), np.uint8)
    data = load(save(tmp_path / "a.npz", pack([encode(flat, "JPEG")])))
    assert np.abs(data.images[0].astype(int) - flat.transpose(2, 0, 1)).max() <= 3


def test_packed_layout_names_the_damaged_image(tmp_path: Path) -> None:
    good = encode(pixels(4, 5, 3))
    reference = save(tmp_path / "a.npz", pack([good, good[:40], good]))
    with pytest.raises(DataError, match=r"a\.npz: image 1: not a readable image"):
        load(reference)


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": np.array([0, 10**9])},
        {"offsets": np.array([-1, 10])},
        {"offsets": np.array([0, 20, 10])},
        {"offsets": np.array([0, 10, 10])},
        {"offsets": np.array([], int)},
        {"offsets": np.array([0.0, 10.0])},
        {"offsets": np.array([[0, 10]])},
        {"jpeg": np.zeros(100, np.int16)},
        {"offsets": np.array([0])},
    ],
)
def test_packed_layout_with_a_wrong_index_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    reference = save(tmp_path / "a.npz", pack([encode(pixels(4, 5, 3))]) | change)
    with pytest.raises(DataError, match="offsets|holds no images"):
        load(reference)


def test_packed_layout_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'offsets' is missing"):
        load(save(tmp_path / "a.npz", {"jpeg": pixels(9)}))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train_images", "train_labels"), ("test_images", "test_labels")),
        (("train_images", "train_labels"), ("val_images", "val_labels")),
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("x_train", "y_train"), ("x_validation", "y_validation")),
    ],
)
def test_one_archive_with_all_splits(tmp_path: Path, train: tuple[str, str], test: tuple[str, str]) -> None:
    first, second = pixels(6, 3, 4, 5), pixels(4, 3, 4, 5)
    arrays = {train[0]: first, train[1]: np.array([0, 1, 2, 3, 4, 5]), test[0]: second, test[1]: np.array([1, 0, 2, 0])}
    reference = save(tmp_path / "a.npz", arrays)
    loaded = {split: load_data(reference, split=split, preprocessing=COLOUR) for split in ("train", "test")}
    assert np.array_equal(loaded["train"].images, first)
    assert np.array_equal(loaded["test"].images, second)
    assert loaded["test"].labels.tolist() == [1, 0, 2, 0]
    # The held-out images lack the last classes, and yet both splits have the same ones.
    assert loaded["train"].classes == loaded["test"].classes == tuple("012345")
    named = save(tmp_path / "b.npz", arrays | {"classes": np.array(list("abcdefg"))})
    assert load(named).classes == tuple("abcdefg")


def test_one_archive_without_a_split(tmp_path: Path) -> None:
    arrays = {"train_images": pixels(6, 3, 4, 5), "train_labels": np.zeros(6, int)}
    with pytest.raises(DataError, match=r"a\.npz: has no images of the split 'test' \(it has train\)"):
        load(save(tmp_path / "a.npz", arrays))


def test_unnamed_classes_are_counted_over_all_archives(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", {"images": pixels(3, 3, 4, 5), "labels": np.array([0, 1, 7])})
    save(tmp_path / "test.npz", {"images": pixels(2, 3, 4, 5), "labels": np.array([0, 3])})
    for split in ("train", "test"):
        assert len(load_data(str(tmp_path), split=split, preprocessing=COLOUR).classes) == 8
    save(tmp_path / "train.npz", {"images": pixels(3, 3, 4, 5), "labels": np.array([0, 1, -7])})
    with pytest.raises(DataError, match=r"train\.npz: labels run from -7 to 1"):
        load_data(str(tmp_path), split="train", preprocessing=COLOUR)


def test_packed_layout_skips_damaged_images_if_asked_for(tmp_path: Path) -> None:
    good = encode(pixels(4, 5, 3))
    reference = save(tmp_path / "a.npz", pack([good, good[:40], good]) | {"labels": np.array([0, 1, 1])})
    data = load_data(reference, split="train", preprocessing=COLOUR, options=LoadOptions(errors="skip"))
    assert data.labels.tolist() == [0, 1]
    assert "image 1: not a readable image" in data.skipped[0]


def test_an_archive_that_grows_beyond_reason_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import zipfile

    from eqdeploy.data.npz import read_arrays

    path = tmp_path / "bomb.npz"
    header = (
        np.lib.format.magic(1, 0) + b"v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % (1 << 29)
    )
    header = header.ljust(128, b" ")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header)
        for _ in range(32):
            stream.write(bytes(1 << 24))
    with pytest.raises(DataError, match="array 'images' grows from"):
        read_arrays(path, ["images"], where="bomb")
