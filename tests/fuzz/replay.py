"""Give single inputs to a target: ``python -m tests.fuzz.replay TARGET FILE...``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.fuzz.watching import Finding, bounded, judge


def main(name: str, files: list[str]) -> int:
    """Print how each input ends, and return 1 if one is a finding."""
    found = False
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = TARGETS[name].placed(Path(folder))
        for file in files:
            outcome = judge(TARGETS[name], path, Path(file).read_bytes())
            if isinstance(outcome, Finding):
                found = True
                print(f"{file}: {outcome.signature}\n{outcome.text}")
            else:
                print(f"{file}: {'accepted' if outcome else 'refused'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
