"""Elastic spaces and subnets: order, digest, round trip, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, LayerInfo, NetworkDescription, OpKind, TensorInfo
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig


def tensor(name: str, *, non_negative: bool = False, trained: bool = True) -> TensorInfo:
    return TensorInfo(name, (1,), OpKind.OTHER, "test", (), (), non_negative=non_negative, trained=trained)


def layer(name: str, source: str) -> LayerInfo:
    return LayerInfo(name, OpKind.CONV, (4, 2, 3, 3), 0, 1, source, f"{name}_out", None, 1)


NETWORK = NetworkDescription(
    layers=(layer("first", "x"), layer("middle.conv", "a"), layer("side", "b"), layer("last", "b")),
    tensors=(tensor("x"), tensor("a", non_negative=True), tensor("b"), tensor("c", trained=False)),
    space=ElasticSpace(bits=(2, 4, 8)),
)


def uniform(weight_bits: int = 4, activation_bits: int = 2, **changes: Any) -> SubnetConfig:
    arguments: dict[str, Any] = {
        "granularity": Granularity.PER_CHANNEL,
        "weight_symmetry": Symmetry.SYMMETRIC,
        "activation_symmetry": Symmetry.ASYMMETRIC,
        **changes,
    }
    return SubnetConfig.uniform(NETWORK, weight_bits=weight_bits, activation_bits=activation_bits, **arguments)


def test_uniform_keeps_the_boundary_at_its_own_width() -> None:
    config = uniform()
    assert {name: form.bits for name, form in config.weights} == {"first": 8, "middle.conv": 4, "side": 4, "last": 8}
    assert {name: form.bits for name, form in config.activations} == {"x": 8, "a": 2, "b": 8}
    assert {name: form.bits for name, form in uniform(boundary_bits=2).weights}["first"] == 2


def test_a_non_negative_tensor_is_unsigned_whatever_the_symmetry() -> None:
    for symmetry in Symmetry:
        form = dict(uniform(activation_symmetry=symmetry).activations)["a"]
        assert (form.symmetry, form.signed) == (Symmetry.SYMMETRIC, False)
    assert dict(uniform(activation_symmetry=Symmetry.SYMMETRIC).activations)["b"].signed
    assert not dict(uniform(activation_symmetry=Symmetry.ASYMMETRIC).activations)["b"].signed


def test_every_uniform_subnet_is_in_the_space() -> None:
    for granularity in Granularity:
        for symmetry in Symmetry:
            config = uniform(granularity=granularity, weight_symmetry=symmetry, activation_symmetry=symmetry)
            assert all(form in NETWORK.space.weight_forms() for _, form in config.weights)
            for name, form in config.activations:
                forms = NETWORK.space.activation_forms(non_negative=NETWORK.tensor[name].non_negative)
                assert form in forms


names = st.text(alphabet="abcdef._0123456789", min_size=1, max_size=8)
form_strategy = st.builds(
    Form, st.integers(1, 8), st.sampled_from(Granularity), st.sampled_from(Symmetry), signed=st.booleans()
)
tables = st.dictionaries(names, form_strategy, max_size=6).map(lambda table: tuple(table.items()))


@given(weights=tables, activations=tables)
def test_json_round_trip_keeps_order_and_digest(
    weights: tuple[tuple[str, Form], ...], activations: tuple[tuple[str, Form], ...]
) -> None:
    config = SubnetConfig(weights, activations)
    text = json.dumps(config.to_json())
    back = SubnetConfig.from_json(json.loads(text), where="test")
    assert back == config
    assert hash(back) == hash(config)
    assert back.digest == config.digest


def test_the_digest_tells_subnets_apart_and_is_the_same_in_every_process() -> None:
    digests = {uniform(w, a).digest for w in (2, 4, 8) for a in (2, 4, 8)}
    assert len(digests) == 9
    program = (
        "from eqdeploy.quant.form import *; from eqdeploy.subnet import SubnetConfig;"
        "form = Form(4, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True);"
        "print(SubnetConfig((('a', form), ('b', form)), (('t', form),)).digest)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    form = Form(4, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)
    assert printed == {SubnetConfig((("a", form), ("b", form)), (("t", form),)).digest + "\n"}


GOOD: dict[str, Any] = {"schema": 1, "weights": {"a": "4-per_tensor-symmetric-signed"}, "activations": {}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "schema 1"),
        ([], "schema 1"),
        ({}, "schema 1"),
        ({**GOOD, "schema": 2}, "schema 1"),
        ({**GOOD, "schema": "1"}, "schema 1"),
        ({**GOOD, "extra": 1}, "unknown key 'extra'"),
        ({"schema": 1, "weights": {}}, "activations: must map"),
        ({**GOOD, "weights": ["a"]}, "weights: must map"),
        ({**GOOD, "weights": {"a": 4}}, "weights.a"),
        ({**GOOD, "weights": {"a": "4-bits"}}, "weights.a"),
        ({**GOOD, "activations": {"t": "9-per_tensor-symmetric-signed"}}, "activations.t"),
    ],
)
def test_other_documents_are_refused_with_file_and_key(document: object, message: str) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        SubnetConfig.from_json(document, where="subnet.json")
    assert str(caught.value).startswith("subnet.json")


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": ()},
        {"bits": (8, 4)},
        {"bits": (4, 4, 8)},
        {"bits": (0, 8)},
        {"bits": (8, 9), "boundary_bits": 8},
        {"bits": (2, 4)},
        {"granularities": ()},
        {"symmetries": (Symmetry.SYMMETRIC, Symmetry.SYMMETRIC)},
        {"bits": (1, 8), "narrow": True},
        {"bits": (1, 8), "narrow": True, "symmetries": (Symmetry.ASYMMETRIC, Symmetry.SYMMETRIC)},
    ],
    ids=str,
)
def test_impossible_spaces_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bits|must hold|narrow"):
        ElasticSpace(**arguments)


def test_a_space_lists_each_form_once() -> None:
    space = ElasticSpace(narrow=True)
    assert len(set(space.weight_forms())) == len(space.weight_forms()) == 7 * 2 * 2
    assert all(form.narrow == (form.symmetry is Symmetry.SYMMETRIC) for form in space.weight_forms())
    assert len(space.activation_forms(non_negative=True)) == 7
    assert len(space.activation_forms(non_negative=False)) == 14
