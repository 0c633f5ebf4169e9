"""``eqdeploy search`` and ``eqdeploy export --search``: from one command to a proven file; killed, and refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eqdeploy.budget import average_bits
from eqdeploy.cli.entry import run
from eqdeploy.pipeline.records import read_records
from eqdeploy.pipeline.sources import load_subnet, load_supernet, shipped_predictor
from eqdeploy.profile import load_profile
from eqdeploy.report import read_report
from eqdeploy.resolve import resolve
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.predictor import Predictor

Run = Callable[..., subprocess.CompletedProcess[str]]

PROFILE = ("--profile", "onnxruntime-x86")
BUDGET = ("--budget", "avg_weight_bits<=3.5")
QUICK = ("--population", "20", "--generations", "10", "--keep", "2")
LATENCY = "layer,weight_bits,activation_bits,milliseconds\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory for runs in this process."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl"))


def test_a_killed_search_without_a_predictor_goes_on_and_ends_as_if_nothing_had_been(
    here: Path, environment: dict[str, str], eqdeploy: Run
) -> None:
    command = ("search", *PROFILE, *BUDGET, *QUICK, "--samples", "60", "--measurements", "measured")
    killed = subprocess.Popen(
        [sys.executable, "-m", "eqdeploy", *command, "-o", "found"],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 200
    while lines(here / "measured") < 5:
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = lines(here / "measured")
    assert not (here / "found").exists()

    done = eqdeploy(*command, "-o", "found", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert lines(here / "measured") == 60
    assert kept < 60
    evidence = json.loads(done.stdout)["result"]["evidence"]
    assert (evidence["predictor"]["source"], evidence["predictor"]["subnets"]) == ("fitted", 60)

    whole = (*command[:-1], "whole")
    assert run([*whole, "-o", "again", "-q"]) == 0
    for name in ("subnet.json", "search.json", "pareto.csv", "pareto.json"):
        assert (here / "found" / name).read_bytes() == (here / "again" / name).read_bytes()
    # Neither measured nor fitted again, another seed notwithstanding.
    predictor = (here / "whole" / "predictor.safetensors").stat().st_mtime_ns
    assert run([*whole, "-o", "seeded", "--seed", "5", "-q"]) == 0
    assert (lines(here / "whole"), (here / "whole" / "predictor.safetensors").stat().st_mtime_ns) == (60, predictor)
    assert json.loads((here / "seeded" / "search.json").read_text())["origin"]["seed"] == 5

    # What is there after a kill between predictor and picture: the next run draws it, of the same predictor.
    picture, content = here / "whole" / "predictor.png", (here / "whole" / "predictor.safetensors").read_bytes()
    picture.unlink()
    assert run([*whole, "-o", "drawn", "-q"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (here / "whole" / "predictor.safetensors").read_bytes() == content
    assert (here / "drawn" / "search.json").read_bytes() == (here / "again" / "search.json").read_bytes()


def test_search_shows_the_report_and_its_subnet_is_resolved(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", *PROFILE, *BUDGET, *QUICK, "-o", "found"]) == 0
    shown = capsys.readouterr()
    for words in (
        "onnxruntime-x86, avg_weight_bits<=3.5",
        "integer program",
        "uniform, best of",
        "random, mean of 5",
        "(shipped), fitted to 600 subnets",
        "optimality gap",
        "8 (fixed)",
        "█",
        "written to found",
    ):
        assert words in shown.out, shown.out
    assert "searching" in shown.err
    assert run(["resolve", *PROFILE, "--subnet", "found/subnet.json", "--json", "resolved.json", "-q"]) == 0
    resolved = json.loads((here / "resolved.json").read_text())["result"]
    assert resolved["subnet"] == json.loads((here / "found" / "subnet.json").read_text())


def test_nothing_to_search_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "--profile", "snpe-dsp"]) == 0
    assert "nothing to search" in capsys.readouterr().out
    assert load_subnet(here / "build" / "search" / "snpe-dsp" / "subnet.json") is not None
    assert run(["search", "--profile", "snpe-dsp", "--budget", "avg_weight_bits<=4", "-o", "other"]) == 2
    assert "smallest possible: avg_weight_bits<=8" in capsys.readouterr().err
    assert not (here / "other").exists()


def test_export_searches_for_every_profile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = (*PROFILE, "--profile", "snpe-dsp")
    assert run(["export", *profiles, "--search", "--budget", "model_bytes<=26kB", "--budget", "bitops<=50M"]) == 0
    shown = capsys.readouterr()
    assert "nothing to search: snpe-dsp" in shown.err
    assert "onnxruntime-x86: valid" in shown.out
    assert "integer program" in shown.out
    for name in ("onnxruntime-x86", "snpe-dsp"):
        folder = here / "build" / name
        subnet = load_subnet(folder / "search" / "subnet.json")
        assert subnet is not None
        assert read_records(folder).subnet == subnet
        assert read_report(folder).provenance.subnet_digest == subnet.digest
        assert json.loads((folder / "search" / "search.json").read_text())["subnet_digest"] == subnet.digest
    assert (here / "build" / "onnxruntime-x86" / "search" / "pareto.png").is_file()
    assert {path.name for path in (here / "build").iterdir()} == {"measurements", "onnxruntime-x86", "snpe-dsp"}


def test_a_profile_whose_first_width_is_not_trained_is_searched_and_exported(here: Path) -> None:
    odd = "schema: 1\nname: odd\ndescription: One bit first.\ndevice: none\ninherits: onnxruntime-x86\n"
    (here / "odd.yaml").write_text(odd + "weights: {bits: [1, 4, 2], boundary_bits: 8}\n")
    assert run(["export", "--profile", "odd.yaml", "-q"]) == 10
    assert run(["export", "--profile", "odd.yaml", "--search", *BUDGET, "-q"]) == 0
    subnet = read_records(here / "build" / "odd").subnet
    assert {form.bits for _, form in subnet.weights} == {2, 4, 8}


def test_a_fixed_width_that_the_predictor_never_saw_is_noted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seven = "schema: 1\nname: seven\ndescription: Ends of 7 bits.\ndevice: none\ninherits: onnxruntime-x86\n"
    (here / "seven.yaml").write_text(seven + "weights: {bits: [7, 4], boundary_bits: 7}\n")
    assert run(["search", "--profile", "seven.yaml", *BUDGET, *QUICK, "-o", "found"]) == 2  # nothing that small
    assert "smallest possible: avg_weight_bits<=4" in capsys.readouterr().err
    assert run(["search", "--profile", "seven.yaml", "--budget", "avg_weight_bits<=5", *QUICK, "-o", "found"]) == 0
    assert "the predictor never saw stem.0 at 7 bits, fc at 7 bits" in capsys.readouterr().err


def test_the_subnet_that_was_found_is_exported(here: Path) -> None:
    """With a table of times, in which two bits cost half of eight."""
    network = load_supernet("digits", None).checkpoint.supernet.network
    times = (
        f"{layer.name},{w},{a},{(w + a) / 16}\n" for layer in network.layers for w in range(2, 9) for a in range(2, 9)
    )
    (here / "times.csv").write_text(LATENCY + "".join(times))
    limits = ("--budget", "latency_ms<=4500us", "--budget", "avg_activation_bits<=3", "--latency", "times.csv")
    assert run(["search", *PROFILE, *limits, *QUICK, "-q", "-o", "found", "--json", "found.json"]) == 0
    costs = json.loads((here / "found.json").read_text())["result"]["costs"]
    assert run(["export", *PROFILE, "--subnet", "found/subnet.json", "-q", "-o", "out"]) == 0
    exported = load_subnet(here / "out" / "onnxruntime-x86" / "subnet.json")
    assert exported == load_subnet(here / "found" / "subnet.json")
    plan = resolve(load_profile("onnxruntime-x86"), network, exported)
    assert average_bits(plan, network).searchable_activations == costs["avg_activation_bits"] <= 3
    widths = {tensor.merged_copy or tensor.tensor: tensor.device.bits for tensor in plan.tensors if tensor.device}
    time = sum((plan.weight[layer.name].device.bits + widths[layer.input_tensor]) / 16 for layer in network.layers)
    assert time == costs["latency_ms"] <= 4.5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--budget", "weight_bits<=3"), 2, ("unknown metric 'weight_bits'", "avg_weight_bits")),
        (("--budget", "model_bytes<=3GiBit"), 2, ("unknown unit 'GiBit'", "KiB")),
        (("--budget", "bitops>=3"), 2, ("budgets are limits",)),
        ((*BUDGET, "--budget", "avg_weight_bits<=3"), 2, ("limited twice",)),
        (("--budget", "avg_weight_bits<=1.5"), 2, ("smallest possible: avg_weight_bits<=2",)),
        (("--budget", "latency_ms<=3"), 2, ("--budget: latency_ms", "--latency FILE.csv")),
        (("--front", "latency_ms"), 2, ("--front", "--latency FILE.csv")),
        (("--front", "speed"), 2, ("unknown metric 'speed'",)),
        (("--latency", "few.csv"), 2, ("few.csv", "no time for", "W")),
        (("--latency", "head.csv"), 2, ("head.csv:1", LATENCY.strip())),
        (("--latency", "none.csv"), 2, ("none.csv",)),
        (("--samples", "20"), 2, ("20 subnets are too few", "--samples 60")),
        (("--predictor", "none.safetensors"), 11, ("no such predictor",)),
        (("--predictor", "p", "--samples", "70"), 2, ("--predictor", "--samples")),
        (("--keep", "0"), 2, ("--keep",)),
        (("-o", "taken"), 41, ("taken", "not the result of a search")),
        ((), 2, ("one profile at a time", "snpe-dsp")),
        (("--supernet", "nosuch"), 11, ("no such supernet",)),
        (("--data", "nosuch"), 40, ("nosuch",)),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    (here / "few.csv").write_text(f"{LATENCY}stem.0,8,8,0.1\n")
    (here / "head.csv").write_text("layer,milliseconds\n")
    (here / "taken").mkdir()
    (here / "taken" / "mine.txt").touch()
    profile = PROFILE if arguments else ()
    if not arguments:
        (here / "eqdeploy.yaml").write_text("profiles: [snpe-dsp, tensorrt]\n")
    before = sorted(here.rglob("*"))
    assert run(["search", *profile, *arguments, "-q"]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert sorted(here.rglob("*")) == before


def test_budgets_that_exclude_each_other_name_the_nearest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["search", *PROFILE, "--budget", "avg_weight_bits<=2", "--budget", "bitops<=1M"])
    assert code == 2
    assert "smallest possible: bitops<=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (BUDGET, ("--budget", "add --search")),
        (("--predictor", "x"), ("--predictor", "add --search")),
        (("--samples", "60"), ("--samples", "add --search")),
        (("--search", "--subnet", "x.json"), ("--search", "--subnet")),
        (("--search", "--budget", "avg_weight_bits<=1"), ("smallest possible",)),
        (("--search", "--samples", "20"), ("too few",)),
    ],
)
def test_export_refuses_what_makes_no_sense(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert run(["export", *PROFILE, *arguments, "-q"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert list(here.iterdir()) == []


def test_a_predictor_of_something_else_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = load_supernet("digits", None).digest
    path = shipped_predictor(digest)
    assert path is not None
    own = Predictor.load(path)
    other = {**own.provenance, "supernet": "other", "supernet_digest": "0" * 64}
    replace(own, provenance=other).save(here / "supernet.safetensors")
    assert run(["search", *PROFILE, *BUDGET, "--predictor", "supernet.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "0" * 64 in error
    assert digest in error
    assert "leave --predictor out" in error

    encoding = own.encoding
    renamed = SubnetEncoding(("first", *encoding.layers[1:]), encoding.tensors, encoding.columns)
    replace(own, encoding=renamed).save(here / "space.safetensors")
    assert run(["search", *PROFILE, *BUDGET, "--predictor", "space.safetensors"]) == 2
    error = capsys.readouterr().err
    assert encoding.digest in error
    assert renamed.digest in error

    unseen = own.seen.copy()
    unseen[[column.value == "2" for column in encoding.columns]] = False
    replace(own, seen=unseen).save(here / "unseen.safetensors")
    assert run(["search", *PROFILE, *BUDGET, "--predictor", "unseen.safetensors"]) == 2
    assert "unseen.safetensors: the predictor never saw" in capsys.readouterr().err
    (here / "damaged.safetensors").write_bytes(path.read_bytes()[:1000])
    assert run(["search", *PROFILE, *BUDGET, "--predictor", "damaged.safetensors"]) == 11
    assert not (here / "build").exists()


def test_measurements_of_something_else_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--images", "40", "--calibration-images", "30")
    assert run(["sample", "--count", "1", *sizes, "-o", "store", "-q"]) == 0
    document = json.loads((here / "store" / "header.json").read_text())
    for key, noun in (("supernet", "another supernet"), ("data", "another data set")):
        shutil.copytree(here / "store", here / key)
        changed = {**document, key: {"name": "other", "digest": "0" * 64}}
        (here / key / "header.json").write_text(json.dumps(changed))
        capsys.readouterr()
        assert run(["search", *PROFILE, *BUDGET, "--measurements", key]) == 2
        error = capsys.readouterr().err
        assert noun in error
        assert "0" * 64 in error
        assert document[key]["digest"] in error
