"""Layers that are applied several times, and tied weights, are one weight with one quantizer, counted once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor, nn

from eqdeploy.budget import average_bits
from eqdeploy.data import TokenPreprocessing, ValuePreprocessing
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import CheckpointError, EqDeployError, ProfileError, UnsupportedOperationError
from eqdeploy.float_share import float_share
from eqdeploy.network import BatchNormTraining, ElasticSpace
from eqdeploy.profile import load_profile
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.resolve import resolve
from eqdeploy.search.costs import CostModel, Metric
from eqdeploy.search.encoding import WEIGHT, SubnetEncoding
from eqdeploy.search.space import Role, search_space
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet import checkpoint
from eqdeploy.supernet.checkpoint import ArchitectureReference, load_checkpoint, save_checkpoint
from eqdeploy.supernet.costs import count_costs
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.optimizer import make_optimizer
from eqdeploy.training.sampling import sample_subnet
from eqdeploy.training.settings import FormSampling, SupernetSettings
from tests.unit.checkpoint_support import build, describe
from tests.unit.search_spaces import X86, with_widths
from tests.unit.shared_networks import SHARED, VOCABULARY, Shared
from tests.unit.supernet_parts import Net, conv, randomize

SPACE = ElasticSpace(bits=(2, 4, 8))
TIED = [name for name, case in SHARED.items() if case.uses]


def model_of(case: Shared) -> nn.Module:
    torch.manual_seed(0)
    return randomize(case.make()).eval()


def supernet_of(name: str, space: ElasticSpace = SPACE) -> Supernet:
    case = SHARED[name]
    supernet = Supernet.from_float(model_of(case), case.inputs(2), space).eval()
    supernet.initialize(case.inputs(8))
    return supernet


def weight_of(supernet: Supernet, layer: str) -> Tensor:
    weight = supernet.graph_module.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight


def drawn(supernet: Supernet, seed: int) -> SubnetConfig:
    generator = torch.Generator().manual_seed(seed)
    bits = supernet.network.space.bits
    return sample_subnet(supernet.network, generator, bits=bits, sampling=FormSampling.PER_LAYER)


@pytest.mark.parametrize("name", SHARED)
def test_the_float_network_is_the_model(name: str) -> None:
    case = SHARED[name]
    model, supernet = model_of(case), supernet_of(name)
    supernet.deactivate()
    x = case.inputs(3, seed=1)
    torch.testing.assert_close(supernet(x), model(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SHARED)
def test_uses_are_layers_with_one_weight_and_one_quantizer(name: str) -> None:
    network = (supernet := supernet_of(name)).network
    assert {owner: uses for owner, uses in network.uses.items() if len(uses) > 1} == SHARED[name].uses
    for owner, uses in network.uses.items():
        layers = [supernet.graph_module.get_submodule(use) for use in uses]
        assert len({id(layer.weight) for layer in layers}) == 1, owner
        assert len({id(layer.weight_quantizer) for layer in layers}) == 1, owner
        inputs = [network.layer[use].input_tensor for use in uses]
        quantizers = supernet.activation_quantizers()
        assert len({id(quantizers[tensor]) for tensor in inputs}) == len(set(inputs)), "each tensor has its own"


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_counts_once(name: str) -> None:
    model, network = model_of(SHARED[name]), (supernet := supernet_of(name)).network
    weights = {id(weight_of(supernet, layer.name)) for layer in network.layers}
    assert len(weights) == len(network.weight_owners) == len(list(supernet.latent_weights()))
    groups = make_optimizer(supernet, SupernetSettings(epochs=1, batch_size=2)).param_groups
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(trained) == len(set(trained))
    quantizers = {module for module in supernet.modules() if isinstance(module, ElasticQuantizer)}
    weight_quantizers = len(quantizers) - len(supernet.activation_quantizers())
    assert weight_quantizers == len(network.weight_owners)
    plan = resolve(load_profile("onnxruntime-x86"), network)
    costs = count_costs(supernet)
    share = float_share(plan, network, costs.macs, costs.parameters)
    tables = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Embedding))
    matrices = {id(p): p.numel() for n, p in model.named_parameters() if p.dim() > 1}
    # A table that is a layer's weight, too, is in the file as float numbers and as integers.
    assert share.parameters == sum(matrices.values()) + tables
    assert share.float_parameters == tables
    assert average_bits(plan, network).weights == 8.0


@pytest.mark.parametrize("name", TIED)
def test_a_search_decides_once_for_all_uses(name: str) -> None:
    supernet = supernet_of(name)
    network = supernet.network
    space = search_space(with_widths(X86, 8, 4, 2), network)
    weights = [gene.names for gene in space.genes if gene.role is Role.WEIGHT]
    assert all(names == network.uses[names[0]] for names in weights)
    assert not set(network.boundary_layers) & {name for names in weights for name in names}
    columns = SubnetEncoding.of(network).columns
    assert {column.name for column in columns if column.role == WEIGHT} <= {
        layer.name for layer in network.weight_owners
    }
    sizes = space.sizes
    for seed in range(4):
        row = np.asarray(np.random.default_rng(seed).integers(sizes), np.int64)
        plan = space.plan(row)
        for owner, uses in network.uses.items():
            assert len({plan.weight[use].trained for use in uses}) == 1, owner
        expected = sum(
            -(-layer.parameters * plan.weight[layer.name].device.bits // 8) for layer in network.weight_owners
        )
        expected += sum(
            4 * layer.weight_shape[0] for layer in network.layers if layer.bias or layer.batch_norm is not None
        )
        assert CostModel(space).costs(row[None])[Metric.MODEL_BYTES][0] == expected
        supernet.activate(plan.subnet)


@pytest.mark.parametrize("name", TIED)
def test_sampled_subnets_have_one_form_for_one_weight(name: str) -> None:
    network = (supernet := supernet_of(name)).network
    for seed in range(4):
        subnet = drawn(supernet, seed)
        supernet.activate(subnet)
        forms = dict(subnet.weights)
        assert list(forms) == [layer.name for layer in network.layers]
        assert all(forms[layer.name] == forms[layer.weight_owner] for layer in network.layers)


def test_two_forms_for_one_weight_are_refused_by_name() -> None:
    supernet = supernet_of("tied autoencoder")
    network, subnet = supernet.network, drawn(supernet, 0)
    other = network.space.weight_form(8 if dict(subnet.weights)["2"].bits != 8 else 2, *_rest(subnet))
    broken = SubnetConfig(
        tuple((name, other if name == "4" else form) for name, form in subnet.weights), subnet.activations
    )
    attempts: list[Callable[[], Any]] = [
        lambda: supernet.activate(broken),
        lambda: resolve(load_profile("onnxruntime-w4a4"), network, broken),
    ]
    for attempt in attempts:
        with pytest.raises(ProfileError, match=r"'4' has .*, '2' has .*one weight"):
            attempt()


def _rest(subnet: SubnetConfig) -> tuple[Any, Any]:
    form = dict(subnet.weights)["2"]
    return form.granularity, form.symmetry


@pytest.mark.parametrize("name", TIED)
def test_gradients_of_all_uses_add_up(name: str) -> None:
    case, supernet = SHARED[name], supernet_of(name)
    supernet.activate(drawn(supernet, 1))
    apart = copy.deepcopy(supernet)
    for uses in SHARED[name].uses.values():
        for use in uses[1:]:  # the same numbers in a module of its own
            parent, _, last = use.rpartition(".")
            part = copy.deepcopy(apart.graph_module.get_submodule(use))
            apart.graph_module.get_submodule(parent).add_module(last, part)
    x = case.inputs(4, seed=2)
    for network in (supernet, apart):
        network(x).square().sum().backward()
    for owner, uses in SHARED[name].uses.items():
        found = weight_of(supernet, owner).grad
        parts = [weight_of(apart, use).grad for use in uses]
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-5)


def _saved(name: str, path: Path) -> Supernet:
    case, supernet = SHARED[name], supernet_of(name)
    preprocessing = TokenPreprocessing(case.shape, VOCABULARY) if case.ids else ValuePreprocessing(case.shape)
    metadata = describe(
        supernet,
        architecture=ArchitectureReference(name=None),
        preprocessing=preprocessing,
        augmentation=Augmentation(),
    )
    save_checkpoint(supernet, metadata, path)
    return supernet


@pytest.mark.parametrize("name", SHARED)
def test_ties_survive_the_checkpoint(name: str, tmp_path: Path) -> None:
    case, path = SHARED[name], tmp_path / "a.safetensors"
    supernet = _saved(name, path)
    loaded = load_checkpoint(path, build, model=case.make()).supernet
    assert loaded.network == supernet.network
    stored = [tensor for tensor in load_file(path) if tensor.endswith("weight")]
    weights = {id(tensor) for tensor in supernet.parameters() if tensor.dim() > 1}
    assert sum(load_file(path)[tensor].dim() > 1 for tensor in stored) == len(weights), "each is written once"
    for owner, uses in case.uses.items():
        with torch.no_grad():
            weight_of(loaded, uses[-1]).add_(1.0)
        assert torch.equal(weight_of(loaded, owner), weight_of(supernet, owner) + 1.0), "training moves both"


def test_a_model_that_does_not_share_is_refused(tmp_path: Path) -> None:
    case, path = SHARED["tied autoencoder"], tmp_path / "a.safetensors"
    _saved("tied autoencoder", path)
    model = case.make()
    model.get_submodule("4").weight = nn.Parameter(torch.zeros(6, 6))
    with pytest.raises(CheckpointError, match=r"4\.weight"):
        load_checkpoint(path, build, model=model)


def test_a_checkpoint_whose_uses_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, path = SHARED["tied autoencoder"], tmp_path / "a.safetensors"

    def untied(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = dict(module.state_dict())
        return {**tensors, "4.weight": tensors["4.weight"] + 1.0}, {}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "own_tensors", untied)
        _saved("tied autoencoder", path)
    with pytest.raises(CheckpointError, match=r"several values: .*4\.weight"):
        load_checkpoint(path, build, model=case.make())


@pytest.mark.parametrize("name", SHARED)
def test_fast_inference_computes_the_same(name: str) -> None:
    case, supernet = SHARED[name], supernet_of(name)
    fast = InferenceNetwork(supernet)
    x = case.inputs(3, seed=3)
    for subnet in (drawn(supernet, 1), None, drawn(supernet, 2)):
        if subnet is None:
            supernet.deactivate()
        else:
            supernet.activate(subnet)
        fast.activate(subnet)
        with torch.no_grad():
            assert torch.equal(fast.evaluate(x), supernet(x))


def _norms_apart(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return torch.relu(m.one(m.layer(x))) + torch.relu(m.two(m.layer(2.0 * x)))


def norms_apart(*, negative: bool) -> nn.Module:
    """One convolution, a BatchNorm of its own behind each use."""
    torch.manual_seed(0)
    parts = {"stem": conv(3, 4), "layer": conv(4, 4), "one": nn.BatchNorm2d(4), "two": nn.BatchNorm2d(4)}
    model: Any = randomize(Net(_norms_apart, **parts)).eval()
    with torch.no_grad():
        for norm in (model.one, model.two):
            norm.weight.abs_()
        if negative:
            model.two.weight[1].neg_()
    result: nn.Module = model
    return result


def test_a_norm_for_each_use_of_a_layer_is_folded_into_each() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = norms_apart(negative=False)
    supernet = Supernet.from_float(model, x, SPACE).eval()
    supernet.deactivate()
    assert [layer.batch_norm for layer in supernet.network.layers] == [None, "one", "two"]
    torch.testing.assert_close(supernet(x), model(x), rtol=0, atol=2e-6)
    with pytest.raises(UnsupportedOperationError, match="positive gains"):
        Supernet.from_float(norms_apart(negative=True), x, SPACE)


def _norm_elsewhere(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.layer(x))
    result: Tensor = m.last(m.norm(torch.relu(x)))
    return result


def test_a_norm_that_is_also_called_behind_no_layer_is_not_folded() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = randomize(Net(_norm_elsewhere, layer=conv(3, 4), norm=nn.BatchNorm2d(4), last=conv(4, 4))).eval()
    supernet = Supernet.from_float(model, x, SPACE).eval()
    supernet.deactivate()
    assert all(layer.batch_norm is None for layer in supernet.network.layers)
    torch.testing.assert_close(supernet(x), model(x), rtol=0, atol=2e-6)


def test_shared_norms_are_not_trained_folded() -> None:
    space = ElasticSpace(bits=(8,), batch_norm=BatchNormTraining.FOLDED)
    with pytest.raises(UnsupportedOperationError) as caught:
        supernet_of("block called twice", space)
    assert "block.0" in str(caught.value)
    assert "batch_norm: separate" in str(caught.value)


def test_a_weight_read_by_other_operations_is_refused_with_advice() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        result: Tensor = F.linear(x, m.fc.weight * 2.0) + m.fc(x)
        return result

    with pytest.raises(EqDeployError, match="also read outside it") as caught:
        Supernet.from_float(Net(body, fc=nn.Linear(4, 4)), torch.zeros(2, 4), SPACE)
    assert "F.linear" in str(caught.value)
