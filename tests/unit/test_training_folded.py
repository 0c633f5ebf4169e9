"""Training with BatchNorm folded and with scales that are powers of two: whole runs, resumed runs, what they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eqdeploy.network import BatchNormTraining, ElasticSpace, ScaleTraining
from eqdeploy.progress import SilentProgress
from eqdeploy.quant.encoding import are_powers_of_two
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.supernet.folded_norm import FoldedNorm
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.settings import SpaceSettings
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build
from tests.unit.training_support import configuration, small_model, write_images

FOLDED = tuple(kind for kind in BatchNormTraining if kind is not BatchNormTraining.SEPARATE)


class Interrupter(SilentProgress):
    """Presses Ctrl-C after some steps of the supernet."""

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if "supernet network" in description and done >= 4:
                raise KeyboardInterrupt

        yield advance


def small_configuration(data: Path, kind: BatchNormTraining, scales: ScaleTraining) -> TrainingConfig:
    space = {"bits": [2, 8], "batch_norm": str(kind), "scales": str(scales)}
    return configuration(data, space=space, float_training={"epochs": 1}, supernet_training={"epochs": 1})


@pytest.mark.parametrize(
    ("kind", "scales"),
    [*((kind, ScaleTraining.FREE) for kind in FOLDED), (BatchNormTraining.FOLDED_MEAN, ScaleTraining.POWER_OF_TWO)],
)
def test_an_interrupted_run_ends_like_one_that_never_was(
    kind: BatchNormTraining, scales: ScaleTraining, tmp_path: Path
) -> None:
    config = small_configuration(write_images(tmp_path / "images"), kind, scales)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    result = train(config, straight, model=small_model())
    with pytest.raises(KeyboardInterrupt):
        train(config, resumed, model=small_model(), progress=Interrupter())
    again = train(config, resumed, resume=True, model=small_model())
    assert again.resumed_at is not None
    assert again.resumed_at.step > 0
    for path in straight.iterdir():
        assert (resumed / path.name).read_bytes() == path.read_bytes(), path.name
    assert result.checkpoint is not None
    supernet = load_checkpoint(result.checkpoint, build, small_model()).supernet
    norms = [
        supernet.graph_module.get_submodule(layer.batch_norm) for layer in supernet.network.layers if layer.batch_norm
    ]
    assert len(norms) == 2
    assert all(isinstance(norm, FoldedNorm) for norm in norms)
    assert supernet.network.space.scales is scales
    if scales is ScaleTraining.POWER_OF_TWO:
        exponents = []
        for name, quantizer in supernet.activation_quantizers().items():
            for form in quantizer.forms:
                assert are_powers_of_two(quantizer.encoding(form).scale).all(), name
                exponents.append(float(quantizer.log2_scale[form.key].detach()))
        assert any(exponent != round(exponent) for exponent in exponents), "they were learned"


def test_digests_of_configurations_without_the_options_stay_as_they_were(tmp_path: Path) -> None:
    plain = configuration(tmp_path / "images")
    assert not {"batch_norm", "scales"} & plain.canonical()["space"].keys()
    assert configuration(tmp_path / "images", space={"batch_norm": "separate", "scales": "free"}).digest == plain.digest
    others = [{"batch_norm": "folded"}, {"batch_norm": "folded_mean"}, {"scales": "power_of_two"}]
    digests = {configuration(tmp_path / "images", space=space).digest for space in others}
    assert len({plain.digest, *digests}) == 4


def test_the_settings_become_a_space() -> None:
    settings = SpaceSettings(batch_norm=BatchNormTraining.FOLDED, scales=ScaleTraining.POWER_OF_TWO)
    assert settings.to_space() == ElasticSpace(batch_norm=BatchNormTraining.FOLDED, scales=ScaleTraining.POWER_OF_TWO)
    assert SpaceSettings.model_validate_json(settings.model_dump_json()) == settings
