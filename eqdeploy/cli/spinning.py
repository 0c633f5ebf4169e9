"""Bound how long threads wait actively for each other.

OpenMP's threads spin after every operation until the next one or until the others have finished. Beside other work the
others are not even running: a step with two threads took ten times as long as one with a single thread
(benchmarks/results/threads_beside_work.md). The pool reads its settings when torch is imported.
"""

from __future__ import annotations

from collections.abc import MutableMapping

#: Turns of the waiting loop before a thread sleeps: a few microseconds, GNU's own number where threads outnumber cores.
_GNU_TURNS = "1000"
#: The same of Intel's and LLVM's pool, milliseconds.
_LLVM_MILLISECONDS = "0"

#: What a user may have said about waiting; then nothing is changed.
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Let threads sleep instead of waiting actively, unless the environment says anything about it.

    Args:
        environment: Of this process, before torch is imported; is changed.
    """
    if not any(name in environment for name in _SETTINGS):
        environment.update({"GOMP_SPINCOUNT": _GNU_TURNS, "KMP_BLOCKTIME": _LLVM_MILLISECONDS})
