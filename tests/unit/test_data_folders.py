"""Data sets as folders: layouts, order, decoding, and everything that can be wrong on disk."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from eqdeploy.data import LabelledImages, LoadOptions, Preprocessing, load_data, load_images
from eqdeploy.data.images import MAX_PIXELS
from eqdeploy.data.options import DataErrors
from eqdeploy.errors import DataError, MissingDependencyError, UsageError
from tests.unit.data_support import SMALL, Listener, write_image


def load(
    root: Path,
    split: str = "test",
    preprocessing: Preprocessing = SMALL,
    *,
    errors: DataErrors = "fatal",
    listener: Listener | None = None,
) -> LabelledImages:
    options = LoadOptions(errors=errors, progress=listener or Listener())
    return load_images(str(root), split=split, preprocessing=preprocessing, options=options)


def test_class_folders_in_splits(tmp_path: Path) -> None:
    expected = [
        write_image(tmp_path / "test" / name, seed) for seed, name in enumerate(("cat/1.png", "cat/2.png", "dog/0.png"))
    ]
    write_image(tmp_path / "train" / "cat" / "9.png")
    write_image(tmp_path / "train" / "dog" / "9.png")
    data = load_data(str(tmp_path), split="test", preprocessing=SMALL)
    assert np.array_equal(data.images, expected)
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1], ("cat", "dog"))
    assert len(load(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("train", "validation"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("training", "testing"),
        ("Training", "Valid"),
        ("train_images", "test_images"),
        ("images-train", "images-val"),
        ("training_set", "eval_set"),
    ],
)
def test_splits_may_be_called_otherwise(tmp_path: Path, train: str, test: str) -> None:
    write_image(tmp_path / test / "cat" / "1.png")
    write_image(tmp_path / train / "cat" / "1.png")
    write_image(tmp_path / train / "cat" / "2.png")
    assert len(load(tmp_path)) == 1
    assert len(load(tmp_path, "train")) == 2
    assert load(tmp_path, "train").classes == ("cat",)


def test_the_plain_name_of_a_split_goes_first(tmp_path: Path) -> None:
    for count, name in enumerate(("test", "test_set", "validation"), start=1):
        for index in range(count):
            write_image(tmp_path / name / "cat" / f"{index}.png")
    assert len(load(tmp_path)) == 1


def test_two_folders_that_can_be_the_same_split_are_refused(tmp_path: Path) -> None:
    for name in ("Train", "train_images", "test"):
        write_image(tmp_path / name / "cat" / "1.png")
    with pytest.raises(DataError, match="'Train' and 'train_images' can both be the split 'train'"):
        load(tmp_path, "train")


@pytest.mark.parametrize("name", ["trainer", "contest", "tests", "evaluations", "values", "train_station"])
def test_a_class_whose_name_only_begins_like_a_split_stays_one(tmp_path: Path, name: str) -> None:
    for folder in (name, "bus"):
        write_image(tmp_path / folder / "near" / "x.png")
    assert load(tmp_path).classes == tuple(sorted((name, "bus")))


def test_class_folders_that_look_like_splits_are_remarked_on(tmp_path: Path) -> None:
    for name in ("a/cat", "a/dog", "b/cat", "b/dog"):
        write_image(tmp_path / name / "x.png")
    listener = Listener()
    assert load(tmp_path, listener=listener).classes == ("a", "b")
    (note,) = listener.notes
    assert "a, b are taken for classes, but all hold the folders cat, dog" in note
    assert "call them train and test" in note


@pytest.mark.parametrize("extra", ["a/x.png", "c/bird/x.png"])
def test_nested_class_folders_are_not_remarked_on(tmp_path: Path, extra: str) -> None:
    for name in ("a/cat/x.png", "a/dog/x.png", "b/cat/x.png", "b/dog/x.png", extra):
        write_image(tmp_path / name)
    listener = Listener()
    load(tmp_path, listener=listener)
    assert not listener.notes


def test_without_splits_every_split_is_the_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "b" / "1.png")
    write_image(tmp_path / "a" / "deeper" / "1.PNG")
    assert load(tmp_path, "train").digest == load(tmp_path, "test").digest
    assert load(tmp_path).classes == ("a", "b")


def test_classes_are_ordered_as_text_and_files_by_path(tmp_path: Path) -> None:
    for name in ("2", "10", "1"):
        write_image(tmp_path / name / "x.png")
    assert load(tmp_path).classes == ("1", "10", "2")


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png")
    for name in ("a/notes.txt", "a/._x.png", "a/.cache/x.png", ".hidden/x.png", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing")
    data = load(tmp_path)
    assert (len(data), data.classes) == (1, ("a",))


def test_class_called_train_stays_a_class(tmp_path: Path) -> None:
    write_image(tmp_path / "bus" / "x.png")
    write_image(tmp_path / "train" / "x.png")
    assert load(tmp_path).classes == ("bus", "train")


def test_missing_split_is_never_replaced(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a" / "x.png")
    with pytest.raises(DataError, match=r"has no folder 'test' \(it has train\)"):
        load(tmp_path)


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    for name in ("train/a/x.png", "train/b/x.png", "test/b/x.png"):
        write_image(tmp_path / name)
    with pytest.raises(DataError, match="class folder 'a' is not in both 'test' and 'train'"):
        load(tmp_path)


@pytest.mark.parametrize("folder", [".", "test"])
def test_unlabelled_images(tmp_path: Path, folder: str) -> None:
    expected = [write_image(tmp_path / folder / f"{index}.png", index) for index in range(3)]
    data = load(tmp_path)
    assert np.array_equal(data.images, expected)
    assert not data.is_labelled
    with pytest.raises(DataError, match="have no labels"):
        load_data(str(tmp_path), split="test", preprocessing=SMALL)


def test_unlabelled_test_beside_labelled_train(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a" / "x.png")
    write_image(tmp_path / "test" / "x.png")
    assert load(tmp_path, "train").is_labelled
    assert not load(tmp_path, "test").is_labelled


def test_limit_spreads_over_the_classes_and_decodes_only_those(tmp_path: Path) -> None:
    for label, name in enumerate("abc"):
        write_image(tmp_path / name / "0.png", label)
        (tmp_path / name / "1.png").write_bytes(b"damaged")
    data = load_images(str(tmp_path), split="test", preprocessing=SMALL, limit=3)
    assert data.labels.tolist() == [0, 1, 2]


def test_grey_network_reads_luminance_and_colour_network_reads_grey_files(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "x.png")
    grey = Preprocessing((4, 5), 1, (0.0,), (1.0,))
    assert load(tmp_path, preprocessing=grey).images.tolist() == [[[[76] * 5] * 4]]
    Image.new("L", (5, 4), 9).save(tmp_path / "x.png")
    assert (load(tmp_path).images == 9).all()


def test_resizing_is_bilinear_on_the_shorter_side_with_a_centre_crop(tmp_path: Path) -> None:
    stored = write_image(tmp_path / "x.png", size=(20, 41))
    data = load(tmp_path, preprocessing=Preprocessing((8, 8), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=10))
    whole = Image.fromarray(stored.transpose(1, 2, 0)).resize((20, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(data.images[0], np.asarray(whole).transpose(2, 0, 1)[:, 1:9, 6:14])


def test_images_of_the_right_size_are_not_resized(tmp_path: Path) -> None:
    stored = write_image(tmp_path / "x.png", size=(8, 8))
    data = load(tmp_path, preprocessing=Preprocessing((8, 8), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=10))
    assert np.array_equal(data.images[0], stored)


def test_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png", size=(6, 7))
    with pytest.raises(DataError, match=r"a/x\.png: image of 6x7 pixels, the network reads 4x5 .*resize_shorter_side"):
        load(tmp_path)


def test_elongated_image_is_not_blown_up(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="too elongated"):
        load(tmp_path, preprocessing=Preprocessing((64, 64), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=2000))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    write_image(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a/1\.png: not a readable image"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "ppm"])
def test_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    write_image(path, size=(4, 5))
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


def test_of_sixteen_bit_colours_the_upper_half_is_read(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1000 + 77
    (tmp_path / "x.ppm").write_bytes(b"P6\n5 4\n65535\n" + pixels.astype(">u2").tobytes())
    images = load(tmp_path).images
    assert np.abs(images[0].transpose(1, 2, 0).astype(int) - pixels // 256).max() <= 1


def test_network_with_other_channels_cannot_read_files(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png")
    with pytest.raises(DataError, match="image files have 1 or 3 channels, the network reads 2"):
        load(tmp_path, preprocessing=Preprocessing((4, 5), 2, (0.0,) * 2, (1.0,) * 2))


def test_empty_and_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load_images("nowhere", split="test", preprocessing=SMALL)
    with pytest.raises(DataError, match="holds no images and no class folders"):
        load(tmp_path)
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: class folder without images"):
        load(tmp_path)


@pytest.mark.parametrize("reference", ["x" * 5000, "a\0b", ""])
def test_references_that_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str) -> None:
    write_image(tmp_path / "a" / "x.png")  # nothing is not the working directory
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load_images(reference, split="test", preprocessing=SMALL)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png")
    write_image(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"both class folders and images \(stray\.png\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["data.tar.gz", "data.zip", "model.pt", "data.npy"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="not a data set that can be read"):
        load(tmp_path / name)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"eqdeploy\[images\]"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_pixels_becomes_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    colour = (200, 100, 50)
    image = Image.new("RGB", (5, 4), colour)
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert("P" if mode == "PA" else mode)
    name = {"CMYK": "x.jpg", "YCbCr": "x.jpg", "PA": "x.png"}.get(mode, "x.png")
    if mode == "PA":
        image.info["transparency"] = 0
    image.save(tmp_path / name)
    loaded = load(tmp_path).images[0].astype(int)
    expected = {"1": None, "L": (124,) * 3, "LA": (124,) * 3}.get(mode, colour)
    assert loaded.shape == (3, 4, 5)
    if expected is None:  # dithered to black and white
        assert set(np.unique(loaded)) <= {0, 255}
    else:
        assert np.abs(loaded - np.array(expected).reshape(3, 1, 1)).max() <= 12  # JPEG and palettes round
    assert load(tmp_path, preprocessing=Preprocessing((4, 5), 1, (0.0,), (1.0,))).images.shape == (1, 1, 4, 5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.zeros((4, 5, 3), np.uint8)
    stored[:2, :2] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    turned = ImageOps.exif_transpose(Image.open(tmp_path / f"x.{suffix}"))
    size = (4, 5) if orientation < 5 else (5, 4)
    found = load(tmp_path, preprocessing=Preprocessing(size, 3, (0.0,) * 3, (1.0,) * 3))
    assert np.array_equal(found.images[0], np.asarray(turned.convert("RGB")).transpose(2, 0, 1))
    assert orientation == 1 or not np.array_equal(found.images[0].transpose(1, 2, 0), stored)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00nonsense", b"Exif\x00\x00"])
def test_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (5, 4), (9, 9, 9)).save(tmp_path / "x.jpg", exif=exif)
    assert (load(tmp_path).images == 9).all()


def test_damaged_images_are_skipped_if_asked_for_and_named_once(tmp_path: Path) -> None:
    for index in range(10):
        write_image(tmp_path / "a" / f"{index}.png", index)
        write_image(tmp_path / "b" / f"{index}.png", index)
    for index in range(1, 8):
        (tmp_path / "b" / f"{index}.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"b/1\.png: not a readable image: .*or train with data_errors: skip"):
        load(tmp_path)
    listener = Listener()
    data = load(tmp_path, errors="skip", listener=listener)
    assert data.labels.tolist() == [0] * 10 + [1] * 3
    assert len(data.skipped) == 7
    (note,) = listener.notes
    assert "skipped 7 of 20 images" in note
    assert "b/5.png" in note
    assert "b/6.png" not in note
    assert note.endswith("; and 2 more")
    for index in (0, 8, 9):
        (tmp_path / "b" / f"{index}.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"no image of class 'b' could be read \(.*b/0\.png"):
        load(tmp_path, errors="skip")


def test_images_of_another_size_are_not_skipped(tmp_path: Path) -> None:
    """That is a mistake in the configuration, which would throw away half of a data set."""
    write_image(tmp_path / "0.png")
    write_image(tmp_path / "1.png", size=(6, 7))
    with pytest.raises(DataError, match=r"1\.png: image of 6x7 pixels"):
        load(tmp_path, errors="skip")


def test_nothing_but_damaged_images(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"no image could be read \(.*0\.png"):
        load(tmp_path, errors="skip")


def test_other_files_are_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png")
    for name in ("a/notes.txt", "a/deeper/more.txt", "readme.md", "a/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "a" / "pipe.png")  # opening it would wait for ever
    listener = Listener()
    assert len(load(tmp_path, listener=listener)) == 1
    assert any("4 files that are no images" in line for line in listener.details)


def test_what_lies_in_an_empty_class_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "b").mkdir()
    for index in range(3):
        (tmp_path / "b" / f"{index}.heic").touch()
    with pytest.raises(DataError, match=r"b: class folder without images \(other files: 3 \.heic; read are \.bmp"):
        load(tmp_path)
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match="test/a: class folder without images"):
        load(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "1.png", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b").mkdir()
    (tmp_path / "data" / "b" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert load(tmp_path / "data").labels.tolist() == [0, 1]
    (tmp_path / "data" / "b" / "more").symlink_to(tmp_path / "data" / "b")
    with pytest.raises(DataError, match="b/more: a symbolic link leads back to a folder around it"):
        load(tmp_path / "data")
    (tmp_path / "data" / "b" / "more").unlink()
    (tmp_path / "data" / "b" / "self").symlink_to(tmp_path / "data" / "b" / "self")
    assert len(load(tmp_path / "data")) == 2


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"a/2\.png: not a readable image: .*No such file"):
        load(tmp_path)
    assert len(load(tmp_path, errors="skip")) == 1


@pytest.mark.parametrize("name", ["Äpfel 🍎", "日本語", "a b'c\"d", "new\nline", os.fsdecode(b"latin-\xe9")])
def test_names_in_any_script(tmp_path: Path, name: str) -> None:
    stored = write_image(tmp_path / "data" / name / f"{name}.png")
    options = LoadOptions(cache=str(tmp_path / name / "cache"), errors="skip")
    (tmp_path / "data" / name / f"{name} 2.png").write_bytes(b"damaged")
    for _ in range(2):
        data = load_images(str(tmp_path / "data"), split="train", preprocessing=SMALL, options=options)
        assert np.array_equal(data.images[0], stored)
        assert data.classes == (name,)
        assert len(data.skipped) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png")
    write_image(tmp_path / "b" / "1.png")
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(DataError, match="b: cannot be listed: Permission denied"):
            load(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    expected = [write_image(tmp_path / f"{index:03}.png", index) for index in range(150)]
    (tmp_path / "120.png").write_bytes(b"damaged")
    (tmp_path / "070.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"070\.png"):
        load_images(str(tmp_path), split="train", preprocessing=SMALL, options=LoadOptions(threads=threads))
    options = LoadOptions(threads=threads, errors="skip")
    data = load_images(str(tmp_path), split="train", preprocessing=SMALL, options=options)
    assert np.array_equal(data.images, np.delete(expected, [70, 120], axis=0))


@pytest.mark.parametrize("settings", [{"errors": "ignore"}, {"cache": ""}, {"threads": 0}])
def test_options_that_do_not_exist_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LoadOptions(**settings)
