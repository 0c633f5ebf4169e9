"""The cache of decoded images: when it is used, when it is stale, and what happens when it cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eqdeploy
from eqdeploy.data import LabelledImages, LoadOptions, Preprocessing, load_images
from eqdeploy.data.cache import MINIMUM_IMAGES, cache_folder, clear_cache, default_cache_folder
from eqdeploy.errors import DataError, OutputError
from tests.unit.data_support import SMALL, Listener, write_image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        for index in range(5):
            write_image(tmp_path / "data" / name / f"{index}.png", 10 * label + index)
    return tmp_path / "data"


def load(
    data: Path,
    cache: Path | str,
    *,
    listener: Listener | None = None,
    preprocessing: Preprocessing = SMALL,
    limit: int | None = None,
    skip: bool = False,
) -> LabelledImages:
    options = LoadOptions(
        cache=str(cache), errors="skip" if skip else "fatal", progress=listener or Listener(), threads=2
    )
    return load_images(str(data), split="train", preprocessing=preprocessing, limit=limit, options=options)


def decoded(data: Path, cache: Path) -> int:
    """Images that loading decodes."""
    listener = Listener()
    load(data, cache, listener=listener)
    return sum(listener.stages.values())


def entries(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "images").iterdir())


def same(first: LabelledImages, second: LabelledImages) -> bool:
    fresh = LabelledImages(first.images, first.labels, first.classes, "x")  # computes the digest itself
    return (
        np.array_equal(first.images, second.images)
        and np.array_equal(first.labels, second.labels)
        and first.classes == second.classes
        and first.digest == second.digest == fresh.digest
        and first.skipped == second.skipped
    )


def test_the_second_time_nothing_is_decoded_and_the_data_are_the_same(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = load(data, "off")
    assert decoded(data, cache) == 10
    assert decoded(data, cache) == 0
    first, second = load(data, cache), load(data, cache)
    assert same(first, second)
    assert same(first, plain)
    assert isinstance(second.images, np.memmap)
    assert entries(cache) == [".json", ".lock", ".u8"]


def test_a_change_of_any_file_makes_it_stale_and_the_old_entry_goes(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(data, cache)
    path = data / "cat" / "2.png"
    content = path.read_bytes()
    changed = write_image(path, 77)
    assert decoded(data, cache) == 10
    assert np.array_equal(load(data, cache).images[2], changed)
    path.write_bytes(content)
    os.utime(path, ns=(5, 5))
    assert decoded(data, cache) == 10
    write_image(data / "cat" / "5.png", 5)
    assert decoded(data, cache) == 11
    (data / "dog" / "0.png").rename(data / "cat" / "6.png")
    assert decoded(data, cache) == 11
    assert decoded(data, cache) == 0
    assert entries(cache) == [".json", ".lock", ".u8"]


def test_other_sizes_and_selections_stand_beside_each_other(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    grey = Preprocessing((4, 5), 1, (0.0,), (1.0,))
    resized = Preprocessing((4, 4), 3, (0.0,) * 3, (1.0,) * 3, resize_shorter_side=6)
    for _ in range(2):
        assert load(data, cache).images.shape == (10, 3, 4, 5)
        assert load(data, cache, preprocessing=grey).images.shape == (10, 1, 4, 5)
        assert load(data, cache, preprocessing=resized).images.shape == (10, 3, 4, 4)
        assert same(load(data, cache, limit=4), load(data, "off", limit=4))
    assert entries(cache).count(".u8") == 4


def test_skipped_images_leave_no_gap_and_are_reported_every_time(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("cat/0.png", "cat/3.png", "dog/4.png"):
        (data / name).write_bytes(b"damaged")
    plain = load(data, "off", skip=True)
    for _ in range(2):
        listener = Listener()
        assert same(load(data, cache, skip=True, listener=listener), plain)
        (note,) = listener.notes
        assert "skipped 3 of 10 images" in note
        assert "cat/3.png" in note
    with pytest.raises(DataError, match="cat/0.png"):
        load(data, cache)


def test_packed_archives_are_cached_by_their_content(data: Path, tmp_path: Path) -> None:
    files = [path.read_bytes() for path in sorted(data.glob("*/*.png"))]
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *(len(file) for file in files)]),
    }
    archive, cache = tmp_path / "a.npz", tmp_path / "cache"
    np.savez(archive, allow_pickle=False, labels=np.arange(10), **arrays)
    assert decoded(archive, cache) == 10
    assert decoded(archive, cache) == 0
    assert same(load(archive, cache), load(archive, "off"))
    np.savez(archive, allow_pickle=False, labels=np.arange(10)[::-1], **arrays)
    assert load(archive, cache).labels.tolist() == list(range(10))[::-1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda pixels, notes: pixels.write_bytes(pixels.read_bytes()[:-1]),
        lambda pixels, notes: pixels.unlink(),
        lambda pixels, notes: notes.write_bytes(b"{"),
        lambda pixels, notes: notes.write_bytes(b"[]"),
        lambda pixels, notes: notes.write_text(json.dumps({"shape": [-1, -1, 60, 10], "skipped": [], "digest": "x"})),
        lambda pixels, notes: notes.write_text(json.dumps({"shape": [10, 3, 4, 5]})),
        lambda pixels, notes: notes.unlink(),
        # Of the right size, as a power cut leaves it, and with notes that were changed along:
        lambda pixels, notes: pixels.write_bytes(bytes(pixels.stat().st_size)),
        lambda pixels, notes: pixels.write_bytes(pixels.read_bytes()[:-4] + bytes(4)),
        lambda pixels, notes: notes.write_text(json.dumps({**json.loads(notes.read_text()), "digest": "0" * 64})),
        lambda pixels, notes: notes.write_text(
            json.dumps({**json.loads(notes.read_text()), "skipped": [[1000, "lost"]]})
        ),
    ],
)
def test_a_damaged_entry_is_made_again(data: Path, tmp_path: Path, damage: object) -> None:
    cache = tmp_path / "cache"
    expected = load(data, cache)
    images, digest = np.array(expected.images), expected.digest
    (pixels,) = (cache / "images").glob("*.u8")
    (notes,) = (cache / "images").glob("*.json")
    assert callable(damage)
    damage(pixels, notes)
    again = load(data, cache)
    assert np.array_equal(again.images, images)
    assert again.digest == digest
    assert decoded(data, cache) == 0


def test_a_failure_leaves_no_entry(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (data / "dog" / "4.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"dog/4\.png: not a readable image"):
        load(data, cache)
    assert entries(cache) == [".lock"]


def test_a_full_disk_is_an_error_that_names_the_remedy_or_is_worked_around(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = Preprocessing((16_000, 16_000), 3, (0.0,) * 3, (1.0,) * 3)  # 7 TB: more than any disk of a test
    for index in range(10_000):
        (data / "cat" / f"copy-{index}.png").touch()
    with pytest.raises(OutputError, match=r"cached: .*\(name another cache folder, or 'off'\)"):
        load(data, tmp_path / "cache", preprocessing=huge)
    assert entries(tmp_path / "cache") == [".lock"]
    monkeypatch.setenv("EQDEPLOY_CACHE", str(tmp_path / "auto"))
    listener = Listener()
    with pytest.raises(DataError, match="are held in memory"):
        load(data, "auto", preprocessing=huge, listener=listener)
    assert "decoding into memory" in listener.notes[0]


def test_a_folder_that_cannot_be_made_is_an_error_or_worked_around(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        load(data, tmp_path / "file" / "cache")
    for index in range(MINIMUM_IMAGES):
        (data / "dog" / f"copy-{index}.png").hardlink_to(data / "dog" / "0.png")
    monkeypatch.setenv("EQDEPLOY_CACHE", str(tmp_path / "file" / "cache"))
    listener = Listener()
    assert len(load(data, "auto", listener=listener)) == 10 + MINIMUM_IMAGES
    assert "decoding into memory" in listener.notes[0]


def test_where_images_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQDEPLOY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "eqdeploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "eqdeploy"
    assert cache_folder("auto", MINIMUM_IMAGES - 1) is None
    assert cache_folder("auto", MINIMUM_IMAGES) == tmp_path / ".cache" / "eqdeploy"
    assert cache_folder("off", MINIMUM_IMAGES) is None
    assert cache_folder("here", 1) == Path("here")
    monkeypatch.setenv("EQDEPLOY_CACHE", "off")
    assert cache_folder("auto", MINIMUM_IMAGES) is None


def test_clearing_removes_entries_and_nothing_else(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(data, cache)
    (cache / "images" / "mine.u8").write_bytes(b"x")
    assert clear_cache(cache) > 600
    assert entries(cache) == [".u8"]
    assert decoded(data, cache) == 10
    assert clear_cache(tmp_path / "nowhere") == 0


PROGRAM = """
import sys
from eqdeploy.data import LoadOptions, load_images
from tests.unit.data_support import SMALL, Listener
listener = Listener()
options = LoadOptions(cache=sys.argv[2], progress=listener)
digest = load_images(sys.argv[1], split="train", preprocessing=SMALL, options=options).digest
print(sum(listener.stages.values()), digest)
"""


def test_of_several_processes_one_decodes(data: Path, tmp_path: Path) -> None:
    for index in range(400):
        Image.new("RGB", (5, 4), (index % 256, index // 256, 0)).save(data / "dog" / f"more-{index}.png")
    command = [sys.executable, "-c", PROGRAM, str(data), str(tmp_path / "cache")]
    root = Path(eqdeploy.__file__).parent.parent
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0].split() for process in running]
    assert sorted(int(count) for count, _ in answers) == [0, 0, 410]
    assert len({digest for _, digest in answers}) == 1
