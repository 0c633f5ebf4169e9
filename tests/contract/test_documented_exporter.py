"""The package in docs/adding-an-exporter.md installs as it stands there, passes its tests and exports a profile."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from eqdeploy.errors import ProfileError
from eqdeploy.testing import ExporterContract
from tests.contract.documented import EXPORTER, PACKAGING, PAGE, PROFILE, TESTS, documented_files

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plugin:
    """The package, installed into a folder of its own.

    Attributes:
        folder: Where its sources and the profile lie.
        site: Where it is installed.
    """

    folder: Path
    site: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a module of Python that sees the checkout and the package."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(self.site))),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    """The package as the page describes it, installed by pip without network."""
    installed = Plugin(tmp_path_factory.mktemp("plugin"), tmp_path_factory.mktemp("site"))
    for name, text in documented_files().items():
        (installed.folder / name).parent.mkdir(exist_ok=True)
        (installed.folder / name).write_text(text, encoding="utf-8")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = installed.run("pip", "install", *options, "--target", str(installed.site), "./eqdeploy-qnn")
    assert done.returncode == 0, done.stderr
    return installed


def test_the_page_holds_the_whole_package() -> None:
    assert set(documented_files()) == {EXPORTER, TESTS, PACKAGING, PROFILE}


def test_it_passes_its_own_tests(plugin: Plugin) -> None:
    done = plugin.run("pytest", "-q", "-p", "no:cacheprovider", "eqdeploy-qnn")
    assert done.returncode == 0, done.stdout
    contract = sum(name.startswith("test_") for name in vars(ExporterContract))
    assert f"{2 * contract + 2} passed" in done.stdout


def test_its_profile_is_exported(plugin: Plugin) -> None:
    done = plugin.run("eqdeploy", "export", "--profile", PROFILE)
    assert done.returncode == 0, done.stderr
    artifact = plugin.folder / "build" / "qnn-htp"
    report = json.loads((artifact / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "valid"
    checks = {row["file"]: row["check"] for row in report["files"]}
    for name in ("qnn/model.onnx", "qnn/model.encodings", "model.onnx"):
        assert checks[name] == "rederived"
    encodings = json.loads((artifact / "qnn" / "model.encodings").read_text(encoding="utf-8"))
    assert {entry["enc_type"] for entry in encodings["param_encodings"]} == {"PER_CHANNEL"}
    assert all(entry["bw"] == 8 for entry in encodings["activation_encodings"])


def test_what_it_refuses_is_said_before_images_are_read(plugin: Plugin) -> None:
    profile = (plugin.folder / PROFILE).read_text(encoding="utf-8").replace("weights:", "weights:\n  bits: 3", 1)
    (plugin.folder / "narrow.yaml").write_text(profile, encoding="utf-8")
    done = plugin.run("eqdeploy", "export", "--profile", "narrow.yaml", "--data", "nothing.npz", "-o", "narrow")
    assert done.returncode == ProfileError.exit_code
    assert "has 3 bits; the file for QNN holds 4 to 8" in done.stderr


def test_the_count_on_the_page_is_right() -> None:
    files = documented_files()
    lines = {name: len(text.splitlines()) for name, text in files.items()}
    imported = [
        alias.name
        for node in ast.walk(ast.parse(files[EXPORTER]))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("eqdeploy")
        for alias in node.names
    ]
    assert not [name for name in imported if name.startswith("_")]
    count = (
        f"0 files of eqdeploy and {len(files)} of their own – {lines[EXPORTER]} lines of Python for the exporter, "
        f"{lines[TESTS]} for its tests, {lines[PACKAGING]} of packaging, {lines[PROFILE]} of profile. The exporter "
        f"imports {len(imported)} names of eqdeploy, none of them private."
    )
    assert count in " ".join(PAGE.split())
