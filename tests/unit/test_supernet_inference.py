"""The inference network computes every subnet as the supernet itself does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.errors import ProfileError
from eqdeploy.network import BatchNormTraining, ElasticSpace, Residual, ScaleTraining
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.sampling import sample_subnet
from eqdeploy.training.settings import FormSampling
from tests.unit.training_support import small_supernet
from tests.unit.twisted_network import twisted_supernet

BITS = (2, 4, 8)
SPACE = ElasticSpace(bits=BITS)


def images(count: int = 41) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def subnets(supernet: Supernet, count: int) -> list[SubnetConfig]:
    generator = torch.Generator().manual_seed(7)
    return [
        sample_subnet(supernet.network, generator, bits=BITS, sampling=FormSampling.PER_LAYER) for _ in range(count)
    ]


def logits_of(supernet: Supernet, subnet: SubnetConfig | None, batches: list[Tensor]) -> Tensor:
    """Logits of the supernet itself, BatchNorm calibrated on the same images."""
    if subnet is None:
        supernet.deactivate()
    else:
        supernet.activate(subnet)
    calibrate_batch_norm(supernet, batches)
    supernet.eval()
    with torch.no_grad():
        return torch.cat([supernet(batch) for batch in batches])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(small_supernet, id="small"),
        pytest.param(lambda: twisted_supernet(SPACE), id="twisted"),
        pytest.param(lambda: twisted_supernet(ElasticSpace(bits=BITS, residual=Residual.FLOAT)), id="residual"),
        pytest.param(
            lambda: twisted_supernet(ElasticSpace(bits=BITS, scales=ScaleTraining.POWER_OF_TWO)), id="powers of two"
        ),
        *(
            pytest.param(
                lambda batch_norm=batch_norm: twisted_supernet(ElasticSpace(bits=BITS, batch_norm=batch_norm)),
                id=str(batch_norm),
            )
            for batch_norm in BatchNormTraining
            if batch_norm is not BatchNormTraining.SEPARATE
        ),
    ],
)
def test_every_subnet_computes_as_in_the_supernet_itself(make: Callable[[], Supernet]) -> None:
    supernet = make()
    network = InferenceNetwork(supernet)
    batches = list(images().split(16))
    drawn = subnets(supernet, 12)
    seen = set()
    # Forwards and backwards: what is kept of one subnet must not be seen in another.
    for subnet in [*drawn, None, *reversed(drawn)]:
        network.activate(subnet)
        calibrate_batch_norm(network.module, batches)
        found = torch.cat([network.evaluate(batch) for batch in batches])
        assert torch.equal(found, logits_of(supernet, subnet, batches))
        seen.add(float(found.sum()))
    assert len(seen) == 13


def test_the_supernet_is_not_touched() -> None:
    supernet = small_supernet().train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    network = InferenceNetwork(supernet)
    for subnet in subnets(supernet, 4):
        network.activate(subnet)
        calibrate_batch_norm(network.module, [images()])
        network.evaluate(images())
    assert supernet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert all(parameter.requires_grad for parameter in supernet.parameters())


def test_input_images_are_not_overwritten() -> None:
    supernet, given = small_supernet(), images()
    before = given.clone()
    network = InferenceNetwork(supernet)
    for subnet in subnets(supernet, 3):
        network.activate(subnet)
        network.evaluate(given)
        assert torch.equal(given, before)


def test_weights_that_do_not_fit_the_cache_are_the_same() -> None:
    supernet, given = small_supernet(), images()
    all_kept, some_kept = InferenceNetwork(supernet), InferenceNetwork(supernet, cache_bytes=300)
    for subnet in subnets(supernet, 6) * 2:
        all_kept.activate(subnet)
        some_kept.activate(subnet)
        assert torch.equal(all_kept.evaluate(given), some_kept.evaluate(given))


def test_relu_is_taken_into_the_quantizer() -> None:
    network = InferenceNetwork(twisted_supernet(SPACE))
    rectifying = {
        name
        for name, module in network.module.named_modules()
        if getattr(module, "rectify", False) and getattr(module, "overwrite", False)
    }
    assert rectifying  # else the first test proves little
    left = [node.name for node in network.module.graph.nodes if "relu" in node.name and "quant" not in node.name]
    assert left, "a ReLU that others read stays"


def test_a_subnet_of_another_network_is_refused() -> None:
    network = InferenceNetwork(small_supernet())
    with pytest.raises(ProfileError):
        network.activate(subnets(twisted_supernet(SPACE), 1)[0])
