"""The lock files fit pyproject.toml, and pip can check every file that they name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def entries(lock: Path) -> dict[str, tuple[Version, list[str]]]:
    """Version and hashes of every package by normalized name."""
    text = re.sub(r"\\\n", " ", lock.read_text(encoding="utf-8"))
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    found: dict[str, tuple[Version, list[str]]] = {}
    for pin, *hashes in lines:
        name, _, version = pin.partition("==")
        found[canonicalize_name(name)] = (Version(version), hashes)
    return found


def wanted() -> list[Requirement]:
    """What the library, its tests and its checks need directly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = [Requirement(text) for text in (*project["dependencies"], *extras["test"], *extras["dev"])]
    return [requirement for requirement in found if requirement.name != "eqdeploy"]


def test_there_is_a_lock() -> None:
    assert LOCKS


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_by_hash(lock: Path) -> None:
    for name, (_, hashes) in entries(lock).items():
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes), name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_the_lock_satisfies_the_ranges(lock: Path) -> None:
    pinned = entries(lock)
    for requirement in wanted():
        version, _ = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, run: bash .ci/lock"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_torch_is_the_build_for_processors(lock: Path) -> None:
    pinned = entries(lock)
    assert pinned["torch"][0].local == "cpu"
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_place(lock: Path) -> None:
    assert not re.search(r"://|--index|--extra-index|--find-links|^/", lock.read_text(encoding="utf-8"), re.MULTILINE)
