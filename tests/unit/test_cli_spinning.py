"""Threads of the command line do not wait actively, unless the user says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from eqdeploy.cli.spinning import bound_spinning

#: Asks what is set at the moment in which torch, and its pool of threads, is loaded.
PROGRAM = """
import os, sys
from importlib.abc import MetaPathFinder
class Watch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), file=sys.stderr, flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
from eqdeploy.cli import main
main()
"""


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_stays(name: str) -> None:
    environment = {name: "anything", "HOME": "/"}
    bound_spinning(environment)
    assert environment == {name: "anything", "HOME": "/"}


@pytest.mark.parametrize(("extra", "seen"), [({}, "1000 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE")])
def test_it_is_said_before_torch_is_loaded(extra: dict[str, str], seen: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "eval"],
        env={**kept, **extra},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == seen
