"""Measuring many subnets quickly gives what measuring each by itself gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import DataError, ProfileError
from eqdeploy.network import BatchNormTraining, ElasticSpace, Residual
from eqdeploy.search.compiled import CompiledEvaluation
from eqdeploy.search.measure import Measurer, calibration_tensor, split_training_images
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.inference import InferenceNetwork
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.compiled import compiler_available
from eqdeploy.training.evaluate import calibrated_correct
from eqdeploy.training.settings import FormSampling
from tests.unit.training_support import small_supernet
from tests.unit.twisted_network import twisted_supernet

PREPROCESSING = Preprocessing((8, 8), 1, (0.5,), (0.25,))
SPACE = ElasticSpace(bits=(2, 4, 8))


def labelled(count: int = 50) -> LabelledImages:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return LabelledImages(images, random.integers(0, 4, count), ("a", "b", "c", "d"), "random")


def calibration(count: int = 41) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def plainly(supernet: Supernet, subnet: SubnetConfig | None, data: LabelledImages) -> tuple[int, Tensor]:
    """Correct images and cross-entropy of each image, without anything clever."""
    if subnet is None:
        supernet.deactivate()
    else:
        supernet.activate(subnet)
    correct = calibrated_correct(supernet, calibration(), data, PREPROCESSING, batch_size=16)
    supernet.eval()
    images = torch.from_numpy(PREPROCESSING.apply(data.images))
    with torch.no_grad():
        logits = torch.cat([supernet(batch) for batch in images.split(16)])
    return correct, functional.cross_entropy(logits.double(), torch.from_numpy(data.labels), reduction="none")


@pytest.mark.parametrize(
    "supernet",
    [
        pytest.param(lambda: small_supernet(), id="small"),
        pytest.param(lambda: twisted_supernet(SPACE), id="twisted"),
        pytest.param(lambda: twisted_supernet(ElasticSpace(bits=(2, 4, 8), residual=Residual.FLOAT)), id="residual"),
        pytest.param(
            lambda: twisted_supernet(ElasticSpace(bits=(2, 4, 8), batch_norm=BatchNormTraining.FOLDED)), id="folded"
        ),
    ],
)
def test_every_subnet_measures_as_the_supernet_itself(supernet: object) -> None:
    assert callable(supernet)
    made: Supernet = supernet()
    data = labelled()
    measurer = Measurer(made, calibration(), data, PREPROCESSING, batch_size=16)
    subnets = sample_subnets(made.network, 24, forms=FormSampling.PER_LAYER)
    seen = set()
    # Forwards and backwards: what is kept of one subnet must not be seen in another.
    for subnet in [*subnets, None, *reversed(subnets)]:
        found = measurer.measure(subnet)
        correct, losses = plainly(made, subnet, data)
        assert (found.correct, found.images) == (correct, 50)
        assert [half.images for half in found.halves] == [25, 25]
        assert [half.cross_entropy for half in found.halves] == [losses[::2].mean(), losses[1::2].mean()]
        assert found.cross_entropy == pytest.approx(float(losses.mean()), rel=1e-12)
        seen.add(found)
    assert len(seen) > 20


def test_the_supernet_is_not_touched() -> None:
    supernet = small_supernet().train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    measurer = Measurer(supernet, calibration(), labelled(), PREPROCESSING)
    first = [measurer.measure(subnet) for subnet in sample_subnets(supernet.network, 4)]
    assert supernet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert all(parameter.requires_grad for parameter in supernet.parameters())
    # ... nor the subnets measured before.
    assert [measurer.measure(subnet) for subnet in sample_subnets(supernet.network, 4)] == first


@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
@pytest.mark.skipif(not compiler_available(), reason="torch needs a C++ compiler to compile")
def test_a_compiled_graph_measures_the_same_up_to_rounding() -> None:
    supernet, data = small_supernet(), labelled()
    network = InferenceNetwork(supernet)
    compiled = CompiledEvaluation(network.module)
    images = torch.from_numpy(PREPROCESSING.apply(data.images))
    for subnet in sample_subnets(supernet.network, 8, forms=FormSampling.PER_LAYER)[::-1]:
        network.activate(subnet)
        for batch in images.split(32):  # the last one is smaller
            with torch.no_grad():
                found = compiled(batch)
            torch.testing.assert_close(found, network.evaluate(batch), rtol=1e-4, atol=1e-4)


def test_a_subnet_of_another_network_is_refused() -> None:
    measurer = Measurer(small_supernet(), calibration(), labelled(), PREPROCESSING)
    foreign = sample_subnets(twisted_supernet(SPACE).network, 1)[0]
    with pytest.raises(ProfileError):
        measurer.measure(foreign)


def test_the_training_images_are_split_by_seed() -> None:
    data = labelled(60)
    split = split_training_images(data, calibration=20, images=30, seed=4)
    rows = [image.tobytes() for part in (split.calibration, split.held_back) for image in part.images]
    assert len(split.calibration) == 20
    assert len(split.held_back) == 30
    assert len(set(rows)) == 50
    assert set(rows) <= {image.tobytes() for image in data.images}
    again, other = (split_training_images(data, calibration=20, images=30, seed=seed) for seed in (4, 5))
    assert again.held_back.digest == split.held_back.digest
    assert other.held_back.digest != split.held_back.digest
    by_image = {image.tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)}
    held_back = split.held_back
    assert all(
        by_image[image.tobytes()] == label for image, label in zip(held_back.images, held_back.labels, strict=True)
    )


@pytest.mark.parametrize(("calibration_images", "images"), [(1, 10), (10, 1), (30, 31), (61, 2)])
def test_too_few_training_images_are_refused(calibration_images: int, images: int) -> None:
    with pytest.raises(DataError, match="of 60 training images"):
        split_training_images(labelled(60), calibration=calibration_images, images=images, seed=0)


def test_calibration_images_are_varied_by_seed() -> None:
    first, again, other = (
        calibration_tensor(labelled(), PREPROCESSING, Augmentation(shift=2), seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = calibration_tensor(labelled(), PREPROCESSING, Augmentation(), 1)
    assert np.array_equal(plain.numpy(), PREPROCESSING.apply(labelled().images))


def test_a_measurement_sums_up_its_halves() -> None:
    measurement = SubnetMeasurement((Score(3, 4, 0.5), Score(1, 3, 0.25)))
    assert (measurement.correct, measurement.images) == (4, 7)
    assert measurement.accuracy == 4 / 7
    assert measurement.cross_entropy == pytest.approx((4 * 0.5 + 3 * 0.25) / 7)
