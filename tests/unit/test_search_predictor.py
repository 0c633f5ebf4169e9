"""Encoding subnets, and predicting what they lose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from eqdeploy.errors import CheckpointError, DataError, UsageError
from eqdeploy.network import ElasticSpace
from eqdeploy.profile import load_profile
from eqdeploy.search.agreement import agreement
from eqdeploy.search.encoding import Column, SubnetEncoding
from eqdeploy.search.fitting import (
    FitSettings,
    derived_features,
    fit_predictor,
    fit_ridge,
    required_subnets,
    total_score,
    untrained_baseline,
)
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.predictor import Predictor, Target
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.search.space import SearchSpace, search_space
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.settings import FormSampling
from tests.unit.search_support import invented_loss, measured, network
from tests.unit.training_support import small_supernet

QUICK = FitSettings(members=3, hidden=(32,), epochs=60)


@pytest.fixture(scope="module")
def data() -> tuple[list[SubnetConfig], list[SubnetMeasurement]]:
    found = measured(260)
    return list(found), list(found.values())


@pytest.fixture(scope="module")
def predictor(data: tuple[list[SubnetConfig], list[SubnetMeasurement]]) -> Predictor:
    encoding = SubnetEncoding.of(network())
    return fit_predictor(encoding, data[0][:180], data[1][:180], settings=QUICK, provenance={"supernet": "small"})


def losses(measurements: list[SubnetMeasurement]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([measurement.cross_entropy for measurement in measurements])


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return search_space(load_profile("onnxruntime-x86"), network())


def test_every_layer_and_tensor_is_encoded() -> None:
    made = network()
    encoding = SubnetEncoding.of(made)
    assert Column("weight", "conv2", "bits", "3") in encoding.columns
    assert Column("weight", "conv2", "granularity", "per_channel") in encoding.columns
    for tensor in made.tensors:
        if tensor.trained:
            symmetric = Column("activation", tensor.name, "symmetry", "symmetric")
            assert (symmetric in encoding.columns) == (not tensor.non_negative)  # else there is nothing to choose
    assert not [column for column in encoding.columns if column[0::2] == ("activation", "granularity")]


def test_different_subnets_have_different_vectors() -> None:
    made = network()
    subnets = sample_subnets(made, 200, forms=FormSampling.PER_LAYER)
    features = SubnetEncoding.of(made).encode(subnets)
    assert len(np.unique(features, axis=0)) == 200
    assert set(np.unique(features)) == {0.0, 1.0}
    assert len(set(features.sum(axis=1))) == 1  # one value of everything


def test_a_choice_of_the_space_is_encoded_as_its_subnet(space: SearchSpace) -> None:
    encoding = SubnetEncoding.of(space.network)
    table = encoding.table(space)
    random = np.random.default_rng(0)
    choices = np.stack([random.integers(0, space.sizes) for _ in range(20)])
    expected = encoding.encode([space.subnet(row) for row in choices])
    assert len(space.genes) > 2
    assert np.array_equal(table.features(choices), expected)


def test_subnets_of_another_network_are_refused() -> None:
    made = network()
    encoding = SubnetEncoding.of(made)
    others = small_supernet(ElasticSpace(bits=(5, 8))).network
    with pytest.raises(UsageError, match="does not know 5-"):
        encoding.encode([sample_subnets(others, 1)[0]])
    subnet = sample_subnets(made, 1)[0]
    with pytest.raises(UsageError, match="another network"):
        encoding.encode([SubnetConfig(subnet.weights[1:], subnet.activations)])
    assert SubnetEncoding.of(others).digest != encoding.digest == SubnetEncoding.of(network()).digest


def test_derived_features_are_step_sizes() -> None:
    made = network()
    encoding = SubnetEncoding.of(made)
    subnet = sample_subnets(made, 60)[-1]
    values = (encoding.encode([subnet]) @ derived_features(encoding))[0]
    bits = np.array([form.bits for _, form in (*subnet.weights, *subnet.activations)])
    np.testing.assert_allclose(values, np.concatenate([2.0**-bits, 4.0**-bits]), rtol=1e-6)
    assert untrained_baseline(encoding, [subnet])[0] == pytest.approx(np.mean(2.0**-bits))


def test_it_predicts_better_than_ridge_and_that_better_than_nothing(
    data: tuple[list[SubnetConfig], list[SubnetMeasurement]], predictor: Predictor
) -> None:
    subnets, measurements = data
    held_out, truth = subnets[180:], np.array([invented_loss(subnet) for subnet in subnets[180:]])
    encoding = predictor.encoding
    own = agreement(predictor.predict(encoding.encode(held_out)).loss, truth)
    ridge = agreement(fit_ridge(encoding, subnets[:180], measurements[:180], held_out, Target.CROSS_ENTROPY), truth)
    nothing = agreement(untrained_baseline(encoding, held_out), truth)
    assert own.kendall.value > 0.85
    assert own.pearson.value > 0.95
    assert own.kendall.value > ridge.kendall.value > nothing.kendall.value
    assert own.kendall.low < own.kendall.value < own.kendall.high
    # In nats, not in some unit of its own.
    predicted = predictor.predict(encoding.encode(held_out)).loss
    assert np.median(np.abs(predicted / truth - 1)) < 0.1


def test_fitting_is_deterministic_and_leaves_the_random_state_alone(
    data: tuple[list[SubnetConfig], list[SubnetMeasurement]], predictor: Predictor, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    again = fit_predictor(
        predictor.encoding, data[0][:180], data[1][:180], settings=QUICK, provenance={"supernet": "small"}
    )
    assert torch.equal(torch.get_rng_state(), state)
    predictor.save(tmp_path / "first")
    again.save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    other = fit_predictor(predictor.encoding, data[0][:180], data[1][:180], settings=QUICK, seed=1)
    assert not np.array_equal(other.weights[0], predictor.weights[0])


def test_a_file_predicts_what_the_predictor_does(predictor: Predictor, tmp_path: Path, space: SearchSpace) -> None:
    path = tmp_path / "predictor.safetensors"
    predictor.save(path)
    loaded = Predictor.load(path)
    features = predictor.encoding.encode(sample_subnets(network(), 30, seed=9))
    assert np.array_equal(loaded.predict(features).loss, predictor.predict(features).loss)
    assert loaded.encoding == predictor.encoding
    assert loaded.provenance == {"supernet": "small"}
    choices = space.uniform()
    np.testing.assert_allclose(
        loaded.on(space)(choices).loss,
        predictor.predict(predictor.encoding.encode([space.subnet(row) for row in choices])).loss,
        rtol=1e-5,
    )


def test_uncertainty_grows_away_from_what_was_seen(
    data: tuple[list[SubnetConfig], list[SubnetMeasurement]],
) -> None:
    subnets, measurements = data
    encoding = SubnetEncoding.of(network())
    order = np.argsort(losses(measurements))
    known = order[130:]  # never a good one
    fitted = fit_predictor(encoding, [subnets[i] for i in known], [measurements[i] for i in known], settings=QUICK)
    found = fitted.predict(encoding.encode(subnets))
    relative = found.uncertainty / found.loss
    assert (found.uncertainty > 0).all()
    assert np.median(relative[order[:60]]) > 1.5 * np.median(relative[known])


def test_accuracy_is_predicted_as_the_share_of_errors(
    data: tuple[list[SubnetConfig], list[SubnetMeasurement]],
) -> None:
    subnets, measurements = data
    encoding = SubnetEncoding.of(network())
    fitted = fit_predictor(encoding, subnets[:180], measurements[:180], target=Target.ACCURACY, settings=QUICK)
    errors = np.array([1 - measurement.accuracy for measurement in measurements[180:]])
    predicted = fitted.predict(encoding.encode(subnets[180:])).loss
    assert ((predicted > 0) & (predicted < 1)).all()
    assert np.median(np.abs(predicted - errors)) < 0.05
    assert agreement(predicted, errors).kendall.value > 0.6


def test_nothing_to_predict_is_said() -> None:
    subnets = sample_subnets(network(), 50)
    same = [SubnetMeasurement((Score(5, 5, 0.5), Score(5, 5, 0.5)))] * 50
    with pytest.raises(DataError, match="same accuracy"):
        fit_predictor(SubnetEncoding.of(network()), subnets, same, target=Target.ACCURACY, settings=QUICK)


def test_a_space_of_another_network_is_refused(predictor: Predictor) -> None:
    other = search_space(load_profile("onnxruntime-x86"), small_supernet(ElasticSpace(bits=(4, 8))).network)
    with pytest.raises(UsageError, match="another network or other forms"):
        predictor.on(other)


def test_choices_that_were_never_seen_are_named(space: SearchSpace) -> None:
    eight = [subnet for subnet in measured(260) if all(form.bits > 2 for _, form in subnet.weights)]
    found = measured(260)
    fitted = fit_predictor(SubnetEncoding.of(network()), eight, [found[subnet] for subnet in eight], settings=QUICK)
    unseen = [gene for gene in space.genes if 2 in gene.bits and str(gene.role) == "weight"]
    if not unseen:
        pytest.skip("the profile has no two bits")
    with pytest.raises(UsageError, match=r"never saw conv\d at 2 bits"):
        fitted.on(space)


@pytest.mark.parametrize("damage", ["missing", "text", "tensors", "nan", "metadata", "depth"])
def test_a_damaged_file_is_refused(predictor: Predictor, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "predictor.safetensors"
    predictor.save(path)
    tensors = load_file(path)
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no tensors")
    elif damage == "metadata":
        save_file(tensors, path)
    else:
        content = path.read_bytes()
        header = int.from_bytes(content[:8], "little")
        start = {"tensors": b'"1.bias"', "depth": b'"seen"', "nan": b""}[damage]
        if damage == "nan":
            path.write_bytes(content[: 8 + header] + b"\xff" * (len(content) - 8 - header))
        else:
            path.write_bytes(content.replace(start, start.replace(b"e", b"x").replace(b"b", b"x"), 1))
    with pytest.raises(CheckpointError, match=r"predictor"):
        Predictor.load(path)


def test_numbers_that_leave_floats_are_refused_and_the_largest_others_are_predicted(
    predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "predictor.safetensors"
    huge = np.full_like(predictor.biases[0], 3e38)
    replace(predictor, biases=(huge, *predictor.biases[1:])).save(path)
    with pytest.raises(CheckpointError, match="not those of a predictor"):
        Predictor.load(path)
    predictor.save(path)
    with safe_open(str(path), framework="numpy") as stream:
        document = json.loads(stream.metadata()["eqdeploy"])
    for key, value in (("scale", 1e308), ("offset", 800.0)):
        save_file(load_file(path), path, metadata={"eqdeploy": json.dumps({**document, key: value})})
        with pytest.raises(CheckpointError, match=f"{key}.*100"):
            Predictor.load(path)
    large = tuple(np.full_like(bias, 1e6) for bias in predictor.biases)
    replace(predictor, biases=large, scale=100.0, offset=-100.0).save(path)
    losses = Predictor.load(path).predict(np.ones((3, predictor.encoding.size), np.float32)).loss
    assert np.isfinite(losses).all()


def test_more_genes_need_more_subnets() -> None:
    made = network()
    encoding = SubnetEncoding.of(made)
    features = encoding.encode(sample_subnets(made, 60))
    assert required_subnets(encoding.columns, features) == 40
    assert required_subnets(encoding.columns * 20, np.tile(features, (1, 20))) == 40  # the same ones again
    renamed = [column._replace(name=f"{column.name}/{copy}") for copy in range(20) for column in encoding.columns]
    widths = 20 * sum(  # searchable weights and tensors of the network
        np.ptp(features[:, [index]], axis=0)[0] > 0
        for index, column in enumerate(encoding.columns)
        if column.aspect == "bits" and column.value == "2"
    )
    assert required_subnets(renamed, np.tile(features, (1, 20))) == 2 * widths > 40


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=20))
def test_transforms_are_undone(values: list[float]) -> None:
    cross_entropies = np.array(values)
    for target, given_losses in (
        (Target.CROSS_ENTROPY, cross_entropies),
        (Target.ACCURACY, cross_entropies / (1.0 + cross_entropies)),
    ):
        np.testing.assert_allclose(target.restored(target.normalized(given_losses)), given_losses, rtol=1e-9)
    scores = [Score(0, 1, value) for value in values]
    np.testing.assert_allclose(np.exp(Target.CROSS_ENTROPY.transformed(scores)), values, rtol=1e-9)


def test_agreement_is_that_of_scipy() -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    first = np.round(random.normal(size=120), 1)  # with ties
    second = first + random.normal(size=120)
    found = agreement(first, second)
    assert found.kendall.value == pytest.approx(stats.kendalltau(first, second).statistic)
    assert found.pearson.value == pytest.approx(stats.pearsonr(first, second).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(first, second).statistic)
    for interval in (found.kendall, found.pearson, found.spearman):
        assert interval.low < interval.value < interval.high
        assert interval.high - interval.low < 0.5
    # The interval of Fisher's transform, close to the bootstrap's.
    exact = stats.pearsonr(first, second).confidence_interval()
    assert found.pearson.low == pytest.approx(exact.low, abs=0.05)
    assert found == agreement(first, second)


def test_a_constant_agrees_with_nothing() -> None:
    found = agreement(np.ones(10), np.arange(10.0))
    assert (found.kendall.value, found.pearson.value, found.spearman.value) == (0, 0, 0)


def test_a_total_is_of_all_images(data: tuple[list[SubnetConfig], list[SubnetMeasurement]]) -> None:
    measurement = data[1][0]
    score = total_score(measurement)
    assert (score.correct, score.images) == (measurement.correct, measurement.images)
