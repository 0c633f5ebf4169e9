"""What is installed is what is in the tree, and it runs away from the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Folders of the package in the tree, by where they are imported from.
FOLDERS = {
    "eqdeploy": ROOT / "eqdeploy",
    "eqdeploy/exporters": ROOT / "exporters",
    "eqdeploy/profiles": ROOT / "profiles",
}


def tree_files() -> set[str]:
    """Every file that belongs into the wheel, by its path there."""
    return {
        f"{target}/{path.relative_to(folder).as_posix()}"
        for target, folder in FOLDERS.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, without network."""
    copy = tmp_path_factory.mktemp("source") / "eqdeploy"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("eqdeploy", "exporters", "profiles"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(target), str(copy)], check=True, timeout=300)
    (built,) = target.glob("*.whl")
    return built


def test_package_list_is_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        ".".join((*target.split("/"), *path.parent.relative_to(folder).parts))
        for target, folder in FOLDERS.items()
        for path in folder.rglob("__init__.py")
    }
    assert listed == present


def test_wheel_holds_exactly_the_files_of_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.split("/", 1)[1] for name in archive.namelist() if ".dist-info/" in name}
    assert names == tree_files()
    assert {"licenses/LICENSE", "entry_points.txt"} <= metadata


def test_installed_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, timeout=300)
    # Dependencies come from the environment that runs the tests; the package itself from the wheel, which goes first.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str, folder: Path = work) -> str:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    program, python = str(environment / "bin" / "eqdeploy"), str(environment / "bin" / "python")
    for package in ("eqdeploy", "eqdeploy.exporters", "eqdeploy.profiles"):
        place = run(python, "-c", f"import {package}, sys; print(sys.modules[{package!r}].__file__)")
        assert place.startswith(str(site))
    shipped = {path.stem for path in (ROOT / "profiles").glob("*.yaml")}
    assert shipped
    for folder in (work, ROOT):
        assert {line.split()[0] for line in run(program, "profiles", "list", folder=folder).splitlines()[1:]} == shipped
    for name in shipped:
        assert run(program, "profiles", "show", name)
    for name in ("json", "pathlib", "typing", "typer"):  # `python -m` must not take them for the real ones
        (work / f"{name}.py").write_text("raise SystemExit('executed')\n")
    assert run(python, "-m", "eqdeploy", "profiles", "list") == run(program, "profiles", "list")
