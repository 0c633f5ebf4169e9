"""``eqdeploy sample`` and ``eqdeploy fit``: killed, gone on with, by several processes, and refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eqdeploy.data.digits import load_digits
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import DataError
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.search.predictor import Predictor
from eqdeploy.search.store import MeasurementStore, StoreHeader
from tests.unit.search_support import measured
from tests.unit.test_search_store import header

Run = Callable[..., subprocess.CompletedProcess[str]]

COUNT = 8
SAMPLE = ("sample", "--count", str(COUNT), "--images", "40", "--calibration-images", "30")


def start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def test_killed_gone_on_with_and_shared_it_ends_with_the_same_measurements(
    tmp_path: Path, environment: dict[str, str], eqdeploy: Run
) -> None:
    whole = eqdeploy(*SAMPLE, "-o", "whole", "--json", "-")
    assert whole.returncode == 0, whole.stderr
    result = json.loads(whole.stdout)["result"]
    assert (result["subnets"], result["measured"], result["images"]) == (COUNT, COUNT, 40)
    assert result["subnets_per_second"] > 0

    killed = start(tmp_path, environment, "-m", "eqdeploy", *SAMPLE[:2], "2000", *SAMPLE[3:], "-o", "killed")
    deadline = time.monotonic() + 120
    while lines(tmp_path / "killed") < 3:
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = MeasurementStore.open(tmp_path / "killed").read()
    assert 3 <= len(kept) < 2000

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "eqdeploy")
    count = str(max(COUNT, len(kept) + 4))
    pair = start(tmp_path, environment, *launcher, "sample", "--count", count, *SAMPLE[3:], "-o", "killed")
    messages = pair.communicate(timeout=200)
    assert pair.returncode == 0, messages
    assert (tmp_path / "killed" / "measurements-1.jsonl").stat().st_size > 0

    expected, found = (MeasurementStore.open(tmp_path / name).read() for name in ("whole", "killed"))
    assert len(found) == int(count)
    assert {subnet: found[subnet] for subnet in expected} == expected

    again = eqdeploy("sample", "--count", count, *SAMPLE[3:], "-o", "killed", "--json", "-")
    assert json.loads(again.stdout)["result"]["measured"] == 0
    assert json.loads(again.stdout)["result"]["subnets_per_second"] is None


def test_an_error_in_one_process_ends_both_soon(tmp_path: Path, environment: dict[str, str], eqdeploy: Run) -> None:
    assert eqdeploy("sample", "--count", "1", *SAMPLE[3:], "-o", "store").returncode == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "eqdeploy")
    with MeasurementStore.open(tmp_path / "store").appending(1):  # the file of the second process
        pair = start(tmp_path, environment, *launcher, "sample", "--count", "2000", *SAMPLE[3:], "-o", "store")
        _, messages = pair.communicate(timeout=200)
    assert pair.returncode != 0
    assert messages.count("error: ") == 1
    assert "measurements-1.jsonl: another run writes to it" in messages
    assert lines(tmp_path / "store") < 100


def test_images_without_a_test_split_are_noted(tmp_path: Path, eqdeploy: Run) -> None:
    preprocessing = load_supernet("digits", None).checkpoint.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    data = load_digits("train", preprocessing=preprocessing)
    np.savez(tmp_path / "all.npz", allow_pickle=False, images=data.images, labels=data.labels)
    noted = eqdeploy("sample", "--count", "1", *SAMPLE[3:], "--data", "all.npz", "-o", "store")
    assert noted.returncode == 0, noted.stderr
    assert "all.npz has no test images of its own" in noted.stderr
    assert "no test images" not in eqdeploy("sample", "--count", "1", *SAMPLE[3:], "-o", "other").stderr


def test_measurements_of_something_else_are_refused(tmp_path: Path, eqdeploy: Run) -> None:
    assert eqdeploy("sample", "--count", "1", *SAMPLE[3:], "-o", "store").returncode == 0
    other_images = eqdeploy("sample", "--count", "1", "--images", "41", *SAMPLE[5:], "-o", "store")
    assert other_images.returncode == 2
    assert "images 40, not 41" in other_images.stderr
    document = json.loads((tmp_path / "store" / "header.json").read_text())
    for key, noun in (("supernet", "another supernet"), ("data", "another data set")):
        changed = {**document, key: {"name": "other", "digest": "0" * 64}}
        StoreHeader.model_validate_json(json.dumps(changed))
        (tmp_path / "store" / "header.json").write_text(json.dumps(changed))
        refused = eqdeploy("sample", "--count", "1", *SAMPLE[3:], "-o", "store")
        assert refused.returncode == 2
        assert noun in refused.stderr
        assert "0" * 64 in refused.stderr
        assert document[key]["digest"] in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("--count", "1", "--images", "1200"), 40, "of 1200 training images"),
        (("--count", "0"), 2, "--count"),
        (("--count", "1", "--forms", "per_wish"), 2, "per_network"),
        (("--count", "1", "--supernet", "nosuch"), 11, "no such supernet"),
    ],
)
def test_what_cannot_be_measured_is_refused(eqdeploy: Run, arguments: tuple[str, ...], code: int, problem: str) -> None:
    done = eqdeploy("sample", *arguments, "-o", "store")
    assert done.returncode == code
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def store(tmp_path: Path) -> MeasurementStore:
    """Invented measurements, many enough for a predictor."""
    made = MeasurementStore.create(tmp_path / "store", header())
    with made.appending() as appender:
        for subnet, measurement in measured(90).items():
            appender.append(subnet, measurement)
    return made


def test_fit_reports_the_predictor_beside_baselines(tmp_path: Path, eqdeploy: Run, store: MeasurementStore) -> None:
    done = eqdeploy("fit", store.folder, "-o", "predictor.safetensors", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert (result["training"], result["held_out"]) == (60, 30)
    rows = {row["name"]: row for row in result["rows"]}
    assert [name.split()[0] for name in rows] == ["predictor", "ridge", "mean", "one"]
    for row in rows.values():
        for number in (row["kendall"], row["pearson"], row["spearman"], row["normalized_pearson"]):
            assert -1 <= number["low"] <= number["value"] <= number["high"] <= 1
    assert rows["predictor"]["kendall"]["value"] > 0.6
    assert (tmp_path / "predictor.png").read_bytes().startswith(b"\x89PNG")
    predictor = Predictor.load(tmp_path / "predictor.safetensors")
    assert predictor.provenance["supernet_digest"] == store.header.supernet.digest
    assert predictor.provenance["subnets"] == 90

    refused = eqdeploy("fit", store.folder, "-o", "predictor.safetensors")
    assert refused.returncode == 41
    assert "--force" in refused.stderr
    before = (tmp_path / "predictor.safetensors").read_bytes(), (tmp_path / "predictor.png").read_bytes()
    assert eqdeploy("fit", store.folder, "-o", "predictor.safetensors", "--force").returncode == 0
    assert ((tmp_path / "predictor.safetensors").read_bytes(), (tmp_path / "predictor.png").read_bytes()) == before


def test_columns_of_other_subnets_are_refused(store: MeasurementStore, eqdeploy: Run) -> None:
    path = store.folder / "header.json"
    document = json.loads(path.read_text())
    document["columns"] = [column for column in document["columns"] if column[3] != "per_tensor"]
    path.write_text(json.dumps(document))
    refused = eqdeploy("fit", store.folder, "-o", "p.safetensors")
    assert refused.returncode == DataError.exit_code
    assert f"{path}: the columns are not those of the subnets" in refused.stderr


def test_too_few_subnets_say_how_many_are_needed(tmp_path: Path, eqdeploy: Run) -> None:
    made = MeasurementStore.create(tmp_path / "few", header())
    with made.appending() as appender:
        for subnet, measurement in measured(20).items():
            appender.append(subnet, measurement)
    few = eqdeploy("fit", "few", "-o", "predictor.safetensors")
    assert few.returncode == 40
    assert "20 subnets are measured, the predictor needs 60" in few.stderr
    assert "--count 60" in few.stderr
    assert not (tmp_path / "predictor.safetensors").exists()
    assert eqdeploy("fit", "none", "-o", "predictor.safetensors").returncode == 40
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
