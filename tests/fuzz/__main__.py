"""Fuzz the parsers: ``python -m tests.fuzz [--minutes N] [--target NAME] [--seed S]``.

Each target runs in a process of its own. With atheris (``pip install -e '.[fuzz]'``) inputs are chosen by what they
cover of the library and of the YAML parser; without it they are mutations of the seeds. Inputs that fail are kept
once for each place where they fail; one that is worth keeping goes into the corpus.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: How much longer than its share a target may run before it is ended: imports, and one input at the end.
_GRACE_SECONDS = 600.0

_FUZZING, _REPLAY = "tests.fuzz.fuzzing", "tests.fuzz.replay"


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
        counts = _fuzz(name, seconds, options.seed, options.findings)
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


def _fuzz(name: str, seconds: float, seed: int, findings: Path) -> dict[str, int]:
    """Fuzz one target until its time is up; where the process dies on the way, another one goes on."""
    counts = {"accepted": 0, "refused": 0, "findings": 0}
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            arguments = [name, str(remaining), str(seed), str(scratch), str(findings)]
            output = _run([_FUZZING, *arguments], remaining + _GRACE_SECONDS)
            counts_file = scratch / "counts.json"
            if counts_file.exists():
                counts = {key: counts[key] + count for key, count in json.loads(counts_file.read_text()).items()}
            if output is None:
                break
            counts["findings"] += _keep_fatal(name, scratch / "input", output, findings / name)
        seed += 1  # not the same way again
    return counts


def _keep_fatal(name: str, content: Path, output: str, folder: Path) -> int:
    """Keep the input that a process died of; return 0 if it was not the input: libFuzzer itself ends early at times."""
    if not content.exists():
        sys.exit(f"{name} was not tried at all:\n{output[-5_000:]}")
    if _run([_REPLAY, name, str(content)], _GRACE_SECONDS) is None:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "died.txt").write_text(output[-20_000:])
    shutil.copy(content, folder / "died")
    return 1


def _run(command: list[str], timeout: float) -> str | None:
    """Run a module of this package; return None if all went well, and what it wrote if not."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as late:
        return f"no end, not even by a signal\n{late.stderr!r}"
    return None if done.returncode == 0 else done.stderr


if __name__ == "__main__":
    sys.exit(main())
