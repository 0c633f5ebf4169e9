"""A whole search on the shipped digits: what it writes, what it keeps, and that it is never worse than uniform."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eqdeploy import pipeline
from eqdeploy.budget import average_bits
from eqdeploy.data import load_data
from eqdeploy.errors import OutputError, UsageError
from eqdeploy.pipeline.sources import load_subnet, load_supernet, shipped_predictor, shipped_supernets
from eqdeploy.profile import load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import SearchOptions, SearchRequest
from eqdeploy.resolve import resolve
from eqdeploy.search.budgets import parse_budgets
from eqdeploy.search.costs import CostModel
from eqdeploy.search.measure import Measurer, calibration_tensor, split_training_images
from eqdeploy.search.outcome import SearchEvidence, SearchResult
from eqdeploy.search.predictor import Predictor
from eqdeploy.search.space import search_space
from tests.unit.search_spaces import bitops, everything, model_bytes

PROFILE = "onnxruntime-x86"
BUDGETS = ("avg_weight_bits<=3.4", "avg_activation_bits<=4", "bitops<=11M")
OPTIONS = SearchOptions(budgets=BUDGETS, keep=3, population=30, generations=15)
FILES = {"subnet.json", "search.json", "pareto.csv", "pareto.json", "pareto.png", "bits.png"}


def request(folder: Path, profile: str = PROFILE, **options: object) -> SearchRequest:
    return SearchRequest(profile, replace(OPTIONS, **options), output=folder / "found", workspace=folder / "work")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def result(folder: Path) -> SearchResult:
    return pipeline.search(request(folder), SilentProgress())


@pytest.fixture(scope="module")
def evidence(result: SearchResult) -> SearchEvidence:
    assert result.evidence is not None
    return result.evidence


def test_the_files_say_what_was_found(result: SearchResult, folder: Path) -> None:
    assert result.directory == folder / "found"
    assert {path.name for path in result.directory.iterdir()} == FILES
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    document = json.loads((result.directory / "search.json").read_text())
    assert document == json.loads(json.dumps(result.document()))
    assert document["origin"]["budgets"] == ["avg_weight_bits<=3.4", "avg_activation_bits<=4", "bitops<=11000000"]
    assert str(folder) not in json.dumps(document)
    for name in ("pareto.png", "bits.png"):
        assert (result.directory / name).read_bytes().startswith(b"\x89PNG")


def test_the_subnet_is_one_of_the_device_and_keeps_the_budgets(result: SearchResult, folder: Path) -> None:
    network = load_supernet("digits", None).checkpoint.supernet.network
    subnet = load_subnet(folder / "found" / "subnet.json")
    assert subnet == result.subnet
    plan = resolve(load_profile(PROFILE), network, subnet)
    assert plan.subnet == subnet
    bits = average_bits(plan, network)
    assert (bits.searchable_weights, bits.searchable_activations) == (
        result.costs["avg_weight_bits"],
        result.costs["avg_activation_bits"],
    )
    assert (model_bytes(plan, network), bitops(plan, network)) == (result.costs["model_bytes"], result.costs["bitops"])
    for budget in parse_budgets(BUDGETS):
        assert result.costs[budget.metric] <= budget.limit
    for layer in result.layers:
        assert layer.weight_bits == plan.weight[layer.layer].trained.bits
        assert layer.searched == ((False, False) if layer.layer in network.boundary_layers else (True, True))


def test_the_chosen_subnet_is_the_best_of_all_that_were_measured(
    result: SearchResult, evidence: SearchEvidence
) -> None:
    chosen, *rows = evidence.rows
    assert chosen.digest == result.subnet.digest
    assert chosen.cross_entropy == min(row.cross_entropy for row in evidence.candidates)
    assert all(chosen.cross_entropy <= row.cross_entropy for row in rows)
    names = " ".join(row.name for row in rows)
    assert all(name in names for name in ("genetic algorithm", "integer program", "uniform", "random"))
    assert len({row.digest for row in evidence.candidates}) == len(evidence.candidates)
    for row in evidence.candidates:
        assert all(row.costs[budget.metric] <= budget.limit for budget in parse_budgets(BUDGETS))


def test_every_uniform_configuration_within_the_budgets_is_measured_on_training_images(
    result: SearchResult, evidence: SearchEvidence
) -> None:
    """The measurements are repeated without anything that the search has set up."""
    checkpoint = load_supernet("digits", None).checkpoint
    space = search_space(load_profile(PROFILE), checkpoint.supernet.network)
    uniform = space.uniform()
    kept = uniform[CostModel(space).feasible(uniform, parse_budgets(BUDGETS))]
    assert len(kept) > 1
    data = load_data("digits", split="train", preprocessing=checkpoint.preprocessing)
    on = evidence.measured_on
    assert on.data_digest == data.digest
    images = split_training_images(data, calibration=on.calibration_images, images=on.images, seed=on.seed)
    assert on.images + on.calibration_images == len(data)
    calibration = calibration_tensor(images.calibration, checkpoint.preprocessing, checkpoint.augmentation, on.seed)
    measurer = Measurer(checkpoint.supernet, calibration, images.held_back, checkpoint.preprocessing)
    measured = {row.digest: row for row in evidence.candidates}
    chosen = measurer.measure(result.subnet).cross_entropy
    assert chosen == pytest.approx(measured[result.subnet.digest].cross_entropy, rel=1e-6)
    for subnet in (space.subnet(choices) for choices in kept):
        found = measurer.measure(subnet)
        assert found.cross_entropy == pytest.approx(measured[subnet.digest].cross_entropy, rel=1e-6)
        assert chosen <= found.cross_entropy * (1 + 1e-6)


def test_the_gap_is_that_of_the_surrogate(evidence: SearchEvidence) -> None:
    gap = evidence.gap
    assert gap.bound <= min(gap.program, gap.genetic, gap.chosen)
    assert gap.program == pytest.approx(gap.bound, abs=1e-6)  # solved to the end
    assert 0.8 < gap.explained <= 1
    rows = {row.name: row for row in evidence.rows}
    first, other = rows["genetic algorithm, best predicted"], rows["integer program"]
    assert gap.gain == pytest.approx(1 - first.predicted_loss / other.predicted_loss)
    assert gap.gain >= 0  # it began with the integer program's subnet


def test_the_front_ends_at_no_budget_of_its_own_metric(result: SearchResult, evidence: SearchEvidence) -> None:
    assert result.directory is not None
    assert evidence.front == ("avg_weight_bits",)
    with (result.directory / "pareto.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    front = [(float(row["avg_weight_bits"]), float(row["predicted_loss"])) for row in rows if row["kind"] == "front"]
    assert len(front) == evidence.front_points > 5
    assert front == sorted(front)
    assert all(later[1] < earlier[1] for earlier, later in itertools.pairwise(front))
    assert front[-1][0] > 3.4
    assert all(float(row["avg_activation_bits"]) <= 4 for row in rows)
    assert [row["subnet"] for row in rows if row["kind"] == "chosen"] == [result.subnet.digest]
    assert sum(row["kind"] == "uniform" for row in rows) > 2
    points = json.loads((result.directory / "pareto.json").read_text())["points"]
    assert [point["subnet_digest"] for point in points] == [row["subnet"] for row in rows]


def test_the_same_search_gives_the_same_bytes(tmp_path: Path, result: SearchResult, folder: Path) -> None:
    again = pipeline.search(request(tmp_path), SilentProgress())
    assert again.subnet == result.subnet
    for name in sorted(FILES):
        assert (tmp_path / "found" / name).read_bytes() == (folder / "found" / name).read_bytes(), name


def test_what_is_measured_once_is_not_measured_again(folder: Path, result: SearchResult) -> None:
    (store,) = (folder / "work" / "measurements").iterdir()
    before = (store / "measurements-0.jsonl").read_bytes()
    assert pipeline.search(replace(request(folder), force=True), SilentProgress()) == result
    assert (store / "measurements-0.jsonl").read_bytes() == before


def test_a_device_with_one_choice_gets_its_subnet_within_budgets_only(tmp_path: Path) -> None:
    found = pipeline.search(request(tmp_path, "snpe-dsp", budgets=("model_bytes<=100KiB",)), SilentProgress())
    network = load_supernet("digits", None).checkpoint.supernet.network
    assert found.evidence is None
    assert (found.subnets, found.genes) == (1, 0)
    assert found.subnet == resolve(load_profile("snpe-dsp"), network).subnet
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"subnet.json", "search.json"}
    assert not (tmp_path / "work").exists()
    too_small = request(tmp_path / "other", "snpe-dsp", budgets=("model_bytes<=10KiB",))
    with pytest.raises(UsageError, match=r"snpe-dsp keeps model_bytes<=10240 \(smallest possible: model_bytes<=25992"):
        pipeline.search(too_small, SilentProgress())
    assert not (tmp_path / "other").exists()


NARROW = """schema: 1
name: narrow
description: Two widths for weights.
inherits: onnxruntime-x86
weights: {bits: [8, 4], boundary_bits: 8}
activations: {non_negative: {bits: 8}, signed: {bits: 8}, boundary_bits: 8}
"""


def test_where_little_can_be_chosen_the_search_finds_the_best_of_all(tmp_path: Path) -> None:
    """Two widths for seven weights: everything is predicted, and more is asked for than there is."""
    (tmp_path / "narrow.yaml").write_text(NARROW)
    asked = request(tmp_path, str(tmp_path / "narrow.yaml"), budgets=("avg_weight_bits<=5",), keep=200)
    found = pipeline.search(asked, SilentProgress())
    assert found.directory is not None
    assert found.evidence is not None
    assert (found.genes, found.subnets) == (7, 128)
    network = load_supernet("digits", None).checkpoint.supernet.network
    space = search_space(load_profile(str(tmp_path / "narrow.yaml")), network)
    rows = everything(space)
    kept = CostModel(space).feasible(rows, parse_budgets(("avg_weight_bits<=5",)))
    path = shipped_predictor(load_supernet("digits", None).digest)
    assert path is not None
    losses = Predictor.load(path).on(space)(rows).loss
    best = next(row for row in found.evidence.rows if row.name == "genetic algorithm, best predicted")
    assert best.digest == space.subnet(rows[kept][losses[kept].argmin()]).digest
    assert {row.digest for row in found.evidence.candidates} == {space.subnet(row).digest for row in rows[kept]}
    assert len({layer.activation_bits for layer in found.layers}) == 1


def test_only_the_result_of_a_search_is_replaced(tmp_path: Path, result: SearchResult, folder: Path) -> None:
    with pytest.raises(OutputError, match="--force"):
        pipeline.search(request(folder), SilentProgress())
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "search.json").write_text("{}")
    with pytest.raises(OutputError, match="never replaced"):
        pipeline.search(replace(request(tmp_path), force=True), SilentProgress())


def test_a_shipped_predictor_belongs_to_its_supernet_and_is_none() -> None:
    assert shipped_supernets() == ("cifar10-resnet20", "digits")
    digest = load_supernet("digits", None).digest
    path = shipped_predictor(digest)
    assert path is not None
    provenance = Predictor.load(path).provenance
    checkpoint = load_supernet("digits", None).checkpoint
    data = load_data("digits", split="train", preprocessing=checkpoint.preprocessing)
    assert (provenance["supernet_digest"], provenance["data_digest"]) == (digest, data.digest)
    assert shipped_predictor("0" * 64) is None
