"""The process that fuzzes one target; started by ``python -m tests.fuzz``.

Arguments: target, seconds, seed, a folder for the input at hand and the counts, a folder for findings.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

#: What of Python's code is instrumented: coverage of it decides which inputs are worth keeping. Not the whole library,
#: since instrumenting takes time.
_INSTRUMENTED = [
    *(
        "yaml",
        "eqdeploy.data",
        "eqdeploy.encoding_table",
        "eqdeploy.files",
        "eqdeploy.inspection",
        "eqdeploy.json_file",
    ),
    *("eqdeploy.manifest", "eqdeploy.pipeline.configuration", "eqdeploy.profile_document", "eqdeploy.profile_loading"),
    *("eqdeploy.profile_problems", "eqdeploy.profile_schema", "eqdeploy.project", "eqdeploy.subnet"),
    *("eqdeploy.search.latency", "eqdeploy.search.predictor", "eqdeploy.search.store", "eqdeploy.yaml_file"),
    *("eqdeploy.supernet.checkpoint", "eqdeploy.supernet.probes", "eqdeploy.validation.qdq_file"),
    *(
        "eqdeploy.training.config",
        "eqdeploy.training.float_weights",
        "eqdeploy.training.log",
        "eqdeploy.training.state",
    ),
    *("eqdeploy.exporters.aimet_encodings", "eqdeploy.exporters.files", "eqdeploy.exporters.metadata"),
    *("eqdeploy.exporters.model_checks", "eqdeploy.exporters.qdq_reader", "eqdeploy.exporters.snpe"),
    *("eqdeploy.exporters.tensorrt",),
]

#: Counts are written this often, since the fuzzer ends the process by itself.
_COUNTS_SECONDS = 0.5


class Session:
    """Hands inputs to a target and keeps what fails, once for each place.

    Args:
        name: The target.
        scratch: Folder for the input at hand.
        findings: Folder for what fails.
    """

    def __init__(self, name: str, scratch: Path, findings: Path) -> None:
        from tests.fuzz.targets import TARGETS
        from tests.fuzz.watching import judge

        self.target = TARGETS[name]
        self.counts = {"accepted": 0, "refused": 0, "findings": 0}
        self._judge = judge
        self._scratch = scratch
        self._findings = findings / name
        self._keys: set[str] = set()
        self._written = 0.0
        folder = scratch / "folder"
        folder.mkdir()
        self._path = self.target.placed(folder)

    def __call__(self, content: bytes) -> None:
        """Judge one input."""
        (self._scratch / "input").write_bytes(content)  # what is here when the process dies was the reason
        outcome = self._judge(self.target, self._path, content)
        if isinstance(outcome, bool):
            self.counts["accepted" if outcome else "refused"] += 1
        elif outcome.key not in self._keys:
            self._keys.add(outcome.key)
            self.counts["findings"] += 1
            self._findings.mkdir(parents=True, exist_ok=True)
            (self._findings / outcome.key).write_bytes(content)
            (self._findings / f"{outcome.key}.txt").write_text(
                f"{outcome.signature}\n{outcome.text}", errors="backslashreplace"
            )
        if time.monotonic() > self._written + _COUNTS_SECONDS:
            self.write_counts()

    def write_counts(self) -> None:
        """Leave the counts for the process that started this one."""
        self._written = time.monotonic()
        (self._scratch / "counts.json").write_text(json.dumps(self.counts))


def _mutate_only(session: Session, seeds: list[bytes], seconds: float, seed: int) -> None:
    """Mutations of the seeds, and of what was accepted before."""
    source, end = random.Random(seed), time.monotonic() + seconds
    pool = list(seeds)
    while time.monotonic() < end:
        content = session.target.mutate(source.choice(pool), source)
        accepted = session.counts["accepted"]
        session(content)
        if session.counts["accepted"] > accepted and len(pool) < 20 * len(seeds):
            pool.append(content)


def _guided(atheris: Any, session: Session, corpus: Path, seconds: float, seed: int) -> None:
    """Mutations of whatever covered something new; ends the process."""

    def mutate(content: bytes, maximum: int, number: int) -> bytes:
        source = random.Random(number)
        if source.randrange(4) == 0:
            return bytes(atheris.Mutate(content, maximum))
        return session.target.mutate(content, source)[:maximum]

    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed + 1}", "-max_len=300000", "-len_control=0"]
    # The bounds are those of judge(), for every engine the same.
    atheris.Setup(
        [
            "fuzz",
            *options,
            "-timeout=0",
            "-rss_limit_mb=0",
            "-malloc_limit_mb=0",
            f"-artifact_prefix={corpus.parent}/",
            str(corpus),
        ],
        session,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def main(name: str, seconds: float, seed: int, scratch: Path, findings: Path) -> None:
    """Fuzz one target."""
    guide: Any = importlib.import_module("atheris") if importlib.util.find_spec("atheris") else None
    with nullcontext() if guide is None else guide.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzz import watching  # and with it the targets, and with these the library
    session = Session(name, scratch, findings)
    seeds = session.target.seeds(name)
    with watching.bounded():
        for content in seeds.values():
            session(content)
        session.write_counts()
        if guide is None:
            _mutate_only(session, list(seeds.values()), seconds, seed)
            session.write_counts()
            return
        corpus = scratch / "corpus"
        corpus.mkdir()
        for key, content in seeds.items():
            (corpus / key).write_bytes(content)
        _guided(guide, session, corpus, seconds, seed)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
