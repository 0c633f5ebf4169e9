"""Run the tests on the lowest versions that pyproject.toml allows, or on the newest, in an environment of their own."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common import RESULTS, environment, markdown_table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NAME = "versions"

#: The one release that the range of torch holds; asked for by its exact version, pip takes the CPU build.
TORCH = "torch==2.13.0"


def main() -> None:
    """Make the environment, run the tests, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", choices=["lowest", "newest"])
    parser.add_argument("--processes", type=int, default=2, help="test processes")
    options = parser.parse_args()
    wanted = requirements()
    with tempfile.TemporaryDirectory(prefix="eqdeploy-") as name:
        folder = Path(name)
        python = install(folder, [lowest(item) for item in wanted] if options.versions == "lowest" else [])
        start = time.monotonic()
        outcome = run_tests(python, folder / "tests.xml", options.processes)
        outcome["minutes"] = round((time.monotonic() - start) / 60, 1)
        installed = installed_versions(python)
    outcome["versions"] = {item.name: installed[canonicalize_name(item.name)] for item in wanted}
    write(options.versions, wanted, outcome)
    if outcome["failed"]:
        raise SystemExit(f"{outcome['failed']} of {outcome['tests']} tests failed")


def requirements() -> list[Requirement]:
    """What the project and its tests need directly, each name once, as pyproject.toml says it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, Requirement] = {}
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        found.setdefault(Requirement(text).name, Requirement(text))
    return list(found.values())


def lowest(requirement: Requirement) -> str:
    """Constraint that holds a package at the lowest version of its range."""
    bounds = [item.version for item in requirement.specifier if item.operator in (">=", "==", "~=")]
    if len(bounds) != 1:
        raise SystemExit(f"{requirement}: names no lowest version")
    return f"{requirement.name}=={bounds[0]}"


def install(folder: Path, constraints: Iterable[str]) -> Path:
    """Install this checkout with what its tests need into a new environment.

    Args:
        folder: Where to make it.
        constraints: Versions that must be taken; elsewhere pip takes the newest.

    Returns:
        The interpreter.
    """
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / "bin" / "python"
    held = folder / "constraints.txt"
    held.write_text("".join(f"{line}\n" for line in constraints), encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(held)]
    for what in ([TORCH], ["--editable", f"{ROOT}[test]"]):
        subprocess.run([*pip, *what], check=True, cwd=folder)
    return python


def run_tests(python: Path, report: Path, processes: int) -> dict[str, Any]:
    """Run the whole suite and count.

    Args:
        python: The interpreter to run it with.
        report: Where to put JUnit's report of it.
        processes: Test processes.

    Returns:
        Number of tests, of skipped ones and of failed ones, and the names of these.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    options = ["-q", "-n", str(processes), "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run([str(python), "-m", "pytest", *options], check=False, cwd=ROOT, env=variables)
    if not report.exists():
        raise SystemExit(f"pytest ended with {done.returncode} and left no report")
    suite = ElementTree.parse(report).getroot()[0]
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if done.returncode not in (0, 1) or bool(failures) != bool(done.returncode):
        raise SystemExit(f"pytest ended with {done.returncode}")
    return {
        "tests": int(suite.get("tests", "0")),
        "skipped": int(suite.get("skipped", "0")),
        "failed": len(failures),
        "failures": failures,
    }


def installed_versions(python: Path) -> dict[str, str]:
    """Versions in an environment by normalized name."""
    places = [str(path) for path in python.parents[1].glob("lib/python*/site-packages")]
    return {canonicalize_name(item.metadata["Name"]): item.version for item in distributions(path=places)}


def write(column: str, wanted: Iterable[Requirement], outcome: dict[str, Any]) -> None:
    """Put one run into the results; what the other one found stays."""
    path = RESULTS / f"{NAME}.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = environment()
    document[column] = {"processor": here["processor"], "python": here["python"], **outcome}
    document = {key: document[key] for key in ("lowest", "newest") if key in document}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    rows: list[list[str]] = [
        [item.name, f"`{item.specifier}`", *(found["versions"].get(item.name, "") for found in document.values())]
        for item in wanted
    ]
    counted = ("tests", "skipped", "failed", "minutes")
    rows += [[key, "", *(str(found[key]) for found in document.values())] for key in counted]
    commands = "\n".join(f"`python benchmarks/{NAME}.py {key}`: {ran_on(found)}\n" for key, found in document.items())
    table = markdown_table(["package", "declared", *document], rows)
    text = f"# {NAME}\n\n{commands}\nThe whole suite, each time in an environment of its own.\n\n{table}\n"
    failures = [f"- {key}: `{name}`" for key, found in document.items() for name in found["failures"]]
    text += ("\n" + "\n".join(failures) + "\n") if failures else ""
    (RESULTS / f"{NAME}.md").write_text(text, encoding="utf-8")
    print(text)


def ran_on(found: dict[str, Any]) -> str:
    """The machine of one run, in words."""
    return re.sub(r"\s+", " ", f"Python {found['python']} on {found['processor']}")


if __name__ == "__main__":
    main()
