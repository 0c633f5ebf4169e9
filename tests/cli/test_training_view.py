"""A training run as its user sees it: plain lines, a live view of any width, tables of the grid."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from eqdeploy.cli.bars import Bars, pack
from eqdeploy.cli.progress import LiveProgress, PlainProgress
from eqdeploy.cli.training_view import TrainingView, duration, grid_lines
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.text import printable
from eqdeploy.training.evaluate import Evaluation, EvaluationRow
from eqdeploy.training.observer import BatchMeasurements, GridMeasurements, PhaseStart, StepMeasurements
from tests.unit.training_support import configuration, write_images

Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]


class Listener:
    """Keeps what it is to show."""

    def __init__(self) -> None:
        self.facts: Callable[[], Sequence[str]] = tuple
        self.notes: list[str] = []

    def describe(self, facts: Callable[[], Sequence[str]]) -> None:
        self.facts = facts

    def note(self, message: str) -> None:
        self.notes.append(message)


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def start(phase: str = "supernet", *, epochs: int = 24, step: int = 0) -> PhaseStart:
    return PhaseStart(phase, epochs, 390, step, dict)


def measured(step: int, highest: float = 0.31, *, rate: float = 0.00095, accuracy: float = 0.8861) -> StepMeasurements:
    losses = {"highest": highest, "random": 0.42, "lowest": 0.78}
    accuracies = {"highest": accuracy, "random": 0.86, "lowest": 0.7449}
    return StepMeasurements(step, rate, BatchMeasurements(losses, accuracies, {"skewness": 0.1, "kurtosis": 0.2}))


def grid(*, final: bool = False) -> GridMeasurements:
    rows = tuple(
        EvaluationRow(bits, granularity, symmetry, 9000 + 100 * bits + index, 10000)
        for bits in (8, 2)
        for index, (granularity, symmetry) in enumerate((g, s) for g in Granularity for s in Symmetry)
    )
    return GridMeasurements(389, 1, final, Evaluation(9123, 10000, rows), dict)


def test_facts_of_the_supernet() -> None:
    listener, clock = Listener(), Clock()
    view = TrainingView(listener, clock)
    view.phase_started(start())
    assert listener.facts() == ()
    for step in range(1170, 1200):
        clock.now += 0.25
        view.step_done(measured(step))
    assert list(listener.facts()) == [
        "epoch 4 of 24",
        "loss H 0.31 R 0.42 L 0.78",
        "accuracy 89 86 74 %",
        "learning rate 0.00095",
        "4 steps/s",
        "34 min left",  # 8160 steps of a quarter of a second
    ]
    view.step_done(measured(9359))
    assert list(listener.facts())[1:] == ["loss H 0.31 R 0.42 L 0.78", "accuracy 89 86 74 %"], "nothing is left"


def test_facts_of_the_float_phase_name_no_subnet() -> None:
    listener = Listener()
    view = TrainingView(listener, Clock())
    view.phase_started(start("float"))
    view.step_done(StepMeasurements(0, 0.1, BatchMeasurements({"float": 2.3}, {"float": 0.125}, {})))
    assert list(listener.facts()) == ["epoch 1 of 24", "loss 2.30", "accuracy 12 %", "learning rate 0.1"]


def test_measurements_are_smoothed_and_begin_anew_with_a_phase() -> None:
    listener = Listener()
    view = TrainingView(listener, Clock())
    view.phase_started(start())
    view.step_done(measured(0, 1.0))
    view.step_done(measured(1, 3.0))
    assert "loss H 2.01 " in " ".join(listener.facts()), "nearly the mean of the first two"
    for step in range(2, 500):
        view.step_done(measured(step, 5.0))
    assert "loss H 5.00 " in " ".join(listener.facts()), "old ones are forgotten"
    view.phase_started(start())
    assert listener.facts() == ()
    view.step_done(measured(0, 1.0))
    assert "loss H 1.00 " in " ".join(listener.facts())


def test_time_left_knows_neither_compilation_nor_evaluations() -> None:
    listener, clock = Listener(), Clock()
    view = TrainingView(listener, clock)
    view.phase_started(start(epochs=1))
    for step, seconds in ((0, 100.0), (1, 0.5), (2, 0.5)):  # the first one compiles
        clock.now += seconds
        view.step_done(measured(step))
    view.evaluated(grid())
    for step, seconds in ((3, 900.0), (4, 0.5)):
        clock.now += seconds
        view.step_done(measured(step))
    assert list(listener.facts())[-2:] == ["2 steps/s", "3 min left"]  # 385 steps


def test_the_grid_is_a_table_that_fits_narrow_terminals() -> None:
    listener = Listener()
    view = TrainingView(listener)
    view.evaluated(grid())
    assert listener.notes == [
        "epoch 1: accuracy in %, float 91.23",
        "      tensor  tensor  channel  channel",
        "bits     sym    asym      sym     asym",
        "   8   98.00   98.01    98.02    98.03",
        "   2   92.00   92.01    92.02    92.03",
    ]
    assert max(map(len, listener.notes)) < 40
    assert all(printable(line) == line for line in listener.notes)
    view.evaluated(grid(final=True))
    assert len(listener.notes) == 5, "the last one is the result of the command"


def test_a_grid_with_one_form() -> None:
    rows = (EvaluationRow(4, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, 1, 3),)
    assert grid_lines(Evaluation(2, 3, rows), epoch=7)[1:] == ["      channel", "bits      sym", "   4    33.33"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (86400, "24 h 00 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_facts_stand_in_signs_of_life_and_in_the_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("eqdeploy.cli.progress.time.monotonic", clock)
    progress = PlainProgress(verbose=False)
    view = TrainingView(progress, clock)
    with progress.stage("training the supernet network", total=9360) as advance:
        advance(0)
        view.phase_started(start())
        for step in range(1000):
            clock.now += 0.1
            view.step_done(measured(step))
            advance(1)
            if step == 500:
                with progress.stage("evaluating all forms", total=2) as advance_inner:
                    advance_inner(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 + 1 + 1, "two a minute, and one for each stage that ended"
    assert lines[0] == (
        "training the supernet network: 300 of 9360, epoch 1 of 24, loss H 0.31 R 0.42 L 0.78, accuracy 89 86 74 %, "
        "learning rate 0.00095, 10 steps/s, 15 min left"
    )
    assert lines[1] == "evaluating all forms: 0.0 s"
    assert lines[-1].startswith("training the supernet network: 100.0 s, epoch 3 of 24, loss H 0.31 ")


def drawn(width: int) -> list[str]:
    """The live view of a run in a terminal of some width, while the grid is evaluated."""
    view = TrainingView(listener := Listener(), clock := Clock())
    view.phase_started(start())
    for step in range(1100, 1200):
        clock.now += 0.4
        view.step_done(measured(step))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, markup=False)
    bars = Bars(console)
    bars.add_task("training the supernet network", total=9360, completed=1200, facts=lambda: listener.facts())
    bars.add_task("evaluating all forms", total=28, completed=3, facts=tuple)
    with console.capture() as capture:
        console.print(bars.get_renderable())
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_live_view_in_80_columns() -> None:
    lines = drawn(80)
    assert re.fullmatch(r"\S training the supernet network ━+[╸╺]? +1200/9360 0:00:00", lines[0])
    assert re.fullmatch(r"\S evaluating all forms +━+[╸╺]? +3/28 +0:00:00", lines[1])
    assert lines[2:] == [
        "  epoch 4 of 24, loss H 0.31 R 0.42 L 0.78, accuracy 89 86 74 %",
        "  learning rate 0.00095, 2.5 steps/s, 54 min left",
    ]
    assert max(map(len, lines)) <= 80


def test_the_live_view_in_40_columns_has_no_bar_and_every_fact() -> None:
    assert drawn(40) == [
        "  training the supernet network",
        "  1200 of 9360, epoch 4 of 24",
        "  loss H 0.31 R 0.42 L 0.78",
        "  accuracy 89 86 74 %",
        "  learning rate 0.00095, 2.5 steps/s",
        "  54 min left",
        "  evaluating all forms, 3 of 28",
    ]


@pytest.mark.parametrize("width", [1, 3, 10, 20, 59, 60, 61, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = drawn(width)
    assert lines
    assert all(len(line) <= width for line in lines)


def test_packing_loses_nothing() -> None:
    facts = ["a", "bb", "ccc", "dddddddddd", "e"]
    for width in range(1, 30):
        lines = list(pack(facts, width))
        assert ", ".join(lines) == ", ".join(facts)
        assert all(len(line) <= width or line in facts for line in lines)


def test_the_live_view_vanishes_and_leaves_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LiveProgress(verbose=False)
    view = TrainingView(progress)
    with progress.stage("training the supernet network", total=2) as advance:
        view.phase_started(start(epochs=1))
        view.step_done(measured(388))
        view.step_done(measured(389))
        advance(2)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.strip())
    assert re.fullmatch(r"training the supernet network: 0\.\d s, epoch 1 of 1, loss H 0\.31 .*, accuracy .* %", line)


@pytest.fixture
def config(tmp_path: Path) -> str:
    data = write_images(tmp_path / "images")
    changes = {"model": {"architecture": "mlp", "arguments": {"classes": 4}}, "evaluation_epochs": [1]}
    configuration(data, **changes)
    return str(data.parent / "train.yaml")


def test_plain_lines_of_a_run(eqdeploy: Run, config: str) -> None:
    done = eqdeploy("train", config, "--out", "run", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "train"
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"training the float network: \d+\.\d s, epoch 2 of 2, loss \d\.\d\d, accuracy \d+ %", lines[0])
    table = lines.index("bits     sym    asym      sym     asym")
    assert re.fullmatch(r"epoch 1: accuracy in %, float \d+\.\d\d", lines[table - 2])
    assert [line.split()[0] for line in lines[table + 1 : table + 4]] == ["2", "4", "8"]
    assert re.fullmatch(
        r"training the supernet network: \d+\.\d s, epoch 2 of 2, loss H \d\.\d\d R \d\.\d\d L \d\.\d\d, "
        r"accuracy \d+ \d+ \d+ %",
        lines[-2],
    )
    assert lines[-1].startswith("evaluating all forms: ")
    assert lines.count("bits     sym    asym      sym     asym") == 1
    assert "\x1b" not in done.stderr


def test_quiet_shows_nothing_of_a_run(eqdeploy: Run, config: str) -> None:
    done = eqdeploy("train", config, "--out", "run", "-q", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_in_a_terminal_of_40_columns(config: str, environment: dict[str, str], tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    kept = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-m", "eqdeploy", "train", config, "--out", str(tmp_path / "run")],
        env={**kept, "TERM": "xterm"},
        stdin=inner,
        stdout=inner,
        stderr=inner,
    ) as process:
        os.close(inner)
        received = b""
        try:
            while chunk := os.read(outer, 65536):
                received += chunk
        except OSError:  # how Linux tells that the other side is closed
            pass
        assert process.wait(timeout=60) == 0
    os.close(outer)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", received.decode())
    shown = [part.strip() for line in text.splitlines() for part in line.split("\r")]
    assert any(re.fullmatch(r"training the supernet network", line) for line in shown), "without a bar"
    assert any(line.startswith("training the supernet network: ") for line in shown), "the line that is left"
    assert "bits     sym    asym      sym     asym" in shown


def test_event_files_are_written_and_continued(eqdeploy: Run, config: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    assert eqdeploy("train", config, "--out", "run", "--float-only", "--tensorboard", "events").returncode == 0
    refused = eqdeploy("train", config, "--out", "other", "--tensorboard", "events")
    assert refused.returncode == 41
    assert refused.stderr.startswith("error: events: an earlier training has written its curves here (")
    assert not (tmp_path / "other").exists()
    assert eqdeploy("train", config, "--out", "run", "--resume", "--tensorboard", "events").returncode == 0
    for phase, tag in (("float", "loss/float"), ("supernet", "accuracy/lowest")):
        events = accumulator.EventAccumulator(str(tmp_path / "events" / phase)).Reload()
        assert [event.step for event in events.Scalars(tag)] == list(range(12))


def test_missing_tensorboard_is_told_before_any_work(config: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tensorboard.py").write_text("raise ModuleNotFoundError('no such module', name=__name__)\n")
    done = subprocess.run(
        [sys.executable, "-m", "eqdeploy", "train", config, "--out", str(tmp_path / "run"), "--tensorboard", "events"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 30
    assert done.stderr == ("error: --tensorboard: TensorBoard is not installed (pip install 'eqdeploy[tensorboard]')\n")
    assert not (tmp_path / "run").exists()
