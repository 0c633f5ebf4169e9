"""An artifact appears complete or not at all, and nothing else is ever replaced."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eqdeploy.artifact import artifact_directory, check_destination, write_artifact
from eqdeploy.errors import OutputError, RuntimeRefusedError
from eqdeploy.manifest import Provenance, verify_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[2]


def write(directory: Path, content: str, *, force: bool = False) -> None:
    provenance = Provenance(
        profile="p",
        profile_digest="0" * 64,
        supernet="s",
        supernet_digest="1" * 64,
        subnet_digest="2" * 64,
        data="d",
        data_digest="3" * 64,
        seed=0,
    )
    with write_artifact(directory, force=force) as folder:
        (folder / "model.onnx").write_text(content)
        write_manifest(folder, provenance)


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_parents_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path / "build" / "deep" / "p", "one")
    assert tree(tmp_path) == [
        "build",
        "build/deep",
        "build/deep/p",
        "build/deep/p/manifest.json",
        "build/deep/p/model.onnx",
    ]
    verify_manifest(tmp_path / "build" / "deep" / "p")


def test_folder_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    write(tmp_path / "p", "one")
    (tmp_path / "other").mkdir()
    assert (tmp_path / "p").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_artifact_is_replaced_only_with_force(tmp_path: Path) -> None:
    write(tmp_path / "p", "one")
    with pytest.raises(OutputError, match=r"exists already \(replace it with --force\)"):
        write(tmp_path / "p", "two")
    assert (tmp_path / "p" / "model.onnx").read_text() == "one"
    write(tmp_path / "p", "two", force=True)
    assert (tmp_path / "p" / "model.onnx").read_text() == "two"
    assert tree(tmp_path) == ["p", "p/manifest.json", "p/model.onnx"]


def test_the_refusal_comes_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "p", "one")
    with pytest.raises(OutputError), write_artifact(tmp_path / "p"):
        pytest.fail("the body ran")


@pytest.mark.parametrize("manifest", [None, "{}", '{"name": "a web application"}', "not json"])
def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="never replaced"):
        write(folder, "two", force=True)
    assert tree(tmp_path) == before
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write(tmp_path / "p", "one")
    assert (tmp_path / "p" / "model.onnx").read_text() == "one"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file")
    with pytest.raises(OutputError, match="exists and is not a folder"):
        write(tmp_path / "p", "one", force=True)
    with pytest.raises(OutputError, match="p: is not a folder"):
        write(tmp_path / "p" / "below", "one")
    assert (tmp_path / "p").read_text() == "a file"


def test_links(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(OutputError, match="link to nowhere"):
        write(tmp_path / "nowhere", "one")
    write(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "two", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.onnx").read_text() == "two"


def test_an_error_names_the_destination_and_not_the_hidden_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(RuntimeRefusedError, match=r"^build/p/model\.onnx: refused$"),
        write_artifact(Path("build/p")) as f,
    ):
        raise RuntimeRefusedError("refused", where=str(f / "model.onnx"))
    with (
        pytest.raises(OutputError, match=r"^build/p/gone/model\.onnx: No such file"),
        write_artifact(Path("build/p")) as f,
    ):
        (f / "gone" / "model.onnx").write_text("x")


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_write_leaves_the_old_artifact(tmp_path: Path, error: BaseException) -> None:
    def interrupted(folder: Path) -> None:
        with write_artifact(folder, force=True) as temporary:
            (temporary / "model.onnx").write_text("half")
            raise error

    write(tmp_path / "old", "one")
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        interrupted(tmp_path / "old")
    with pytest.raises(type(error)):
        interrupted(tmp_path / "new" / "parents" / "p")
    assert tree(tmp_path) == before
    verify_manifest(tmp_path / "old")


def test_a_disk_error_is_explained_and_a_read_error_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"p: {os.strerror(errno.ENOSPC)}"), write_artifact(tmp_path / "p"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), write_artifact(tmp_path / "p"):
        Path("/nonexistent/image.png").read_bytes()
    assert tree(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB, where one can be mounted."""
    point = tmp_path / "disk"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(point)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_a_full_disk(tiny_disk: Path) -> None:
    with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
        write(tiny_disk / "p", "x" * (1 << 20))
    assert tree(tiny_disk) == []
    write(tiny_disk / "p", "small")
    with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
        write(tiny_disk / "p", "x" * (1 << 20), force=True)
    verify_manifest(tiny_disk / "p")


def test_a_read_only_disk(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_destination(tiny_disk / "build" / "p", force=False)


def test_a_killed_process_leaves_no_artifact(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from eqdeploy.artifact import write_artifact\n"
        "with write_artifact(Path('build/p')) as folder:\n"
        "    (folder / 'model.onnx').write_bytes(b'half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert not (tmp_path / "build" / "p").exists()
    assert [path.name.startswith(".p.partial-") for path in (tmp_path / "build").iterdir()] == [True]
    write(tmp_path / "build" / "p", "whole")
    verify_manifest(tmp_path / "build" / "p")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/a", ".hidden", "a\nb", "a\0b"])
def test_a_name_that_is_no_folder_name(name: str) -> None:
    with pytest.raises(OutputError, match="cannot be the name of a folder"):
        artifact_directory(Path("build"), name)


def test_a_name_that_is() -> None:
    assert artifact_directory(Path("build"), "snpe-dsp.v2") == Path("build/snpe-dsp.v2")
