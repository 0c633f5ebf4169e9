"""Fuzz the parsers: ``python -m tests.fuzz [--minutes N] [--target NAME] [--seed S]``.

Each target runs in a process of its own. With atheris (``pip install -e '.[fuzz]'``) inputs are chosen by what they
cover of the library and of the YAML parser; without it they are mutations of the seeds. Inputs that fail are kept
once for each place where they fail; one that is worth keeping goes into the corpus.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

#: How much longer than its share a target may run before it is ended: imports, and one input at the end.
_GRACE_SECONDS = 120.0

_PROGRAM = "tests.fuzz.fuzzing"


def main() -> int:
    """Fuzz, print a table, and return 1 if anything was found."""
    options = _options()
    names = options.target or _names()
    seconds = 60 * options.minutes / len(names)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: mutations of the seeds only", file=sys.stderr)
    print(f"{'target':<24}{'inputs':>9}{'accepted':>10}{'refused':>9}{'findings':>10}")
    found = 0
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            counts = _fuzz(name, seconds, options.seed, Path(scratch), options.findings)
        found += counts["findings"]
        numbers = (counts["accepted"] + counts["refused"], counts["accepted"], counts["refused"], counts["findings"])
        print("{:<24}{:>9}{:>10}{:>9}{:>10}".format(name, *numbers), flush=True)
    if found:
        print(f"inputs that failed, with tracebacks, are in {options.findings}", file=sys.stderr)
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers of untrusted files.")
    parser.add_argument("--minutes", type=float, default=5.0, help="time for all targets together (5)")
    parser.add_argument("--target", action="append", choices=_names(), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (0)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for inputs that fail")
    return parser.parse_args()


def _names() -> list[str]:
    """Every target has a folder of seeds; the targets themselves are imported where the bounds are."""
    return sorted(path.name for path in (Path(__file__).resolve().parent / "corpus").iterdir())


def _fuzz(name: str, seconds: float, seed: int, scratch: Path, findings: Path) -> dict[str, int]:
    """Fuzz one target until its time is up; a process that dies on the way is a finding and is started anew."""
    command = [sys.executable, "-m", _PROGRAM, name, str(seconds), str(seed), str(scratch), str(findings)]
    died = False
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + _GRACE_SECONDS
        )
        died, output = done.returncode != 0, done.stderr
    except subprocess.TimeoutExpired as late:
        died, output = True, f"no end, not even by a signal\n{late.stderr!r}"
    counts_file = scratch / "counts.json"
    counts: dict[str, int] = {"accepted": 0, "refused": 0, "findings": 0}
    if counts_file.exists():
        counts = json.loads(counts_file.read_text())
    if died:
        folder = findings / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "died.txt").write_text(output[-20_000:])
        if (scratch / "input").exists():
            (scratch / "input").replace(folder / "died")
        counts["findings"] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
