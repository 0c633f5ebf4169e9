"""The configuration file: what it may say, and what is said about mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace
from eqdeploy.quant.form import Granularity
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.settings import Guidance
from tests.unit.training_support import configuration, settings

DATA = Path("images")


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], TrainingConfig]:
    def from_text(text: str) -> TrainingConfig:
        path = tmp_path / "train.yaml"
        path.write_text(text)
        return TrainingConfig.load(path)

    return from_text


def text(**changes: Any) -> str:
    return yaml.safe_dump(settings(DATA, **changes), sort_keys=False)


def replaced(**sections: Any) -> str:
    return yaml.safe_dump(settings(DATA) | sections, sort_keys=False)


def test_defaults_are_the_authors_values(load: Callable[[str], TrainingConfig]) -> None:
    config = load(text())
    assert dict(config.distillation) == {"guidance": Guidance.PROGRESSIVE, "weight": 0.5, "temperature": 1.0}
    assert config.weight_distribution.model_dump() == {
        "kurtosis_weight": 0.015,
        "kurtosis_target": 1.8,
        "skewness_weight": 1.0,
    }
    assert config.supernet_training.gradient_clip == 1.0
    assert config.supernet_training.weight_decay == 0.0


def test_sections_become_the_objects_that_they_describe(load: Callable[[str], TrainingConfig]) -> None:
    config = load(text(space={"bits": [2, 8], "granularities": ["per_channel"], "narrow": True}))
    assert config.space.to_space() == ElasticSpace((2, 8), (Granularity.PER_CHANNEL,), narrow=True)
    preprocessing = config.preprocessing.to_preprocessing()
    assert isinstance(preprocessing, Preprocessing)
    assert (preprocessing.shape, preprocessing.mean, preprocessing.scale) == ((1, 8, 8), (0.3,), 1 / 255)


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"sed": 1}, "sed", "did you mean 'seed'?"),
        ({"nonsense": 1}, "nonsense", "the keys are schema, model"),
        ({"space": {"bts": [8]}}, "space.bts", "did you mean 'bits'?"),
        ({"supernet_training": {"learning_rat": 1}}, "supernet_training.learning_rat", "did you mean 'learning_rate'?"),
        ({"space": {"bits": [2, 4]}}, "space", "boundary_bits 8 is not one of bits [2, 4]"),
        ({"space": {"bits": [4, 2, 8]}}, "space", "ascending"),
        ({"space": {"granularities": ["per_tensr"]}}, "space.granularities.0", "not 'per_tensr'"),
        ({"preprocessing": {"std": [0.0]}}, "preprocessing", "std must be positive"),
        ({"preprocessing": {"mean": [0.1, 0.2, 0.3]}}, "preprocessing", "mean must hold"),
        ({"augmentation": {"shift": -1}}, "augmentation.shift", "greater than or equal to 0"),
        ({"augmentation": {"crop_scale": [0.5, 2]}}, "augmentation", "crop_scale must ascend between 0 and 1"),
        ({"augmentation": {"crop_ratio": [0.75]}}, "augmentation.crop_ratio.1", "missing"),
        ({"augmentation": {"brightness": 11}}, "augmentation", "brightness must be between 0 and 10"),
        ({"augmentation": {"hue": 0.1}}, "augmentation.hue", "the keys are shift, flip, crop_scale"),
        ({"threads": 1.5}, "threads", "not 1.5"),
        ({"threads": 0}, "threads", "greater than or equal to 1"),
        ({"seed": -1}, "seed", "not -1"),
        ({"seed": True}, "seed", "not True"),
        ({"supernet_training": {"learning_rate": "1e-3"}}, "supernet_training.learning_rate", "write 1.0e-3"),
        ({"supernet_training": {"learning_rate": float("nan")}}, "supernet_training.learning_rate", "finite"),
        ({"supernet_training": {"learning_rate": 0}}, "supernet_training.learning_rate", "greater than 0"),
        ({"supernet_training": {"warm_up_steps": 10**100}}, "supernet_training.warm_up_steps", "1000000000000"),
        (
            {"supernet_training": {"weight_decay": 1e300}},
            "supernet_training.weight_decay",
            "less than or equal to 1000000000000",
        ),
        (
            {"supernet_training": {"gradient_clip": 1e60}},
            "supernet_training.gradient_clip",
            "less than or equal to 1000000000000",
        ),
        ({"supernet_training": {"betas": [0.9]}}, "supernet_training.betas.1", "missing"),
        ({"supernet_training": {"batch_size": 1}}, "supernet_training.batch_size", "greater than or equal to 2"),
        ({"distillation": {"weight": 1.1}}, "distillation.weight", "less than or equal to 1"),
        ({"distillation": 3}, "distillation", "not 3"),
        ({"schema": 2}, "schema", "not 2"),
        ({"model": {"architecture": ["a"]}}, "model.architecture", "string"),
    ],
)
def test_a_mistake_is_reported_with_file_line_and_key(
    load: Callable[[str], TrainingConfig], changes: dict[str, Any], where: str, message: str
) -> None:
    with pytest.raises(ProfileError) as caught:
        load(text(**changes))
    file, line, key = str(caught.value.where).rsplit(":", 2)
    assert file.endswith("train.yaml")
    assert int(line) >= 1
    assert key.strip() == where
    assert message in str(caught.value)


def test_a_shift_out_of_sight_is_refused(load: Callable[[str], TrainingConfig]) -> None:
    assert load(text(augmentation={"shift": 7})).augmentation.shift == 7
    with pytest.raises(ProfileError, match=r"augmentation\.shift: 8 pixels"):
        load(text(augmentation={"shift": 8}))


def test_the_line_is_that_of_the_key(load: Callable[[str], TrainingConfig]) -> None:
    with pytest.raises(ProfileError, match=r"train\.yaml:3: distillation\.wieght: unknown key"):
        load("schema: 1\ndistillation:\n  wieght: 0.5\n" + text().removeprefix("schema: 1\n"))


def test_every_mistake_is_listed_with_its_line(load: Callable[[str], TrainingConfig]) -> None:
    lines = "schema: 1\ndistillation:\n  wieght: 0.5\nseed: x\n" + text().removeprefix("schema: 1\n")
    with pytest.raises(ProfileError, match=r"train\.yaml:3: distillation\.wieght: unknown key") as caught:
        load(lines)
    assert "; also line 4: seed: " in str(caught.value)
    assert str(caught.value).count("; also ") == 1


def test_a_missing_key_is_named(load: Callable[[str], TrainingConfig]) -> None:
    with pytest.raises(ProfileError, match=r"data: the key is missing"):
        load("\n".join(line for line in text().splitlines() if not line.startswith("data:")))


@pytest.mark.parametrize(
    "document",
    [
        "",
        "- a\n",
        "just text",
        "schema: [1",
        "seed: 1\nseed: 2\n",
        "&a {schema: *a}",
        "? [a]\n: 1",
        "!!python/object:os.x {}",
    ],
)
def test_what_is_no_mapping_of_keys_is_refused(load: Callable[[str], TrainingConfig], document: str) -> None:
    with pytest.raises(ProfileError, match=r"train\.yaml"):
        load(document)


@pytest.mark.parametrize("level", ["[{}]", "{{a: {0}}}", "{{<<: [{}]}}"])
def test_aliases_to_aliases_are_refused_before_they_fill_the_memory(
    load: Callable[[str], TrainingConfig], level: str
) -> None:
    lines = ["l0: &l0 {a: 1, b: 2}"]
    for depth in range(1, 40):
        many = (
            level.format(", ".join([f"*l{depth - 1}"] * 9))
            if "[" in level
            else f"{{a: *l{depth - 1}, b: *l{depth - 1}}}"
        )
        lines.append(f"l{depth}: &l{depth} {many}")
    with pytest.raises(ProfileError, match=r"train\.yaml:\d+: more than .* values with all aliases written out"):
        load(text() + "\n".join(lines))


def test_an_alias_that_is_used_a_few_times_is_no_fault(load: Callable[[str], TrainingConfig]) -> None:
    document = text().replace("supernet_training:\n", "supernet_training: &training\n")
    document = document[: document.index("float_training")] + document[document.index("supernet_training") :]
    assert load(document + "float_training: *training\n").float_training.epochs == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"absent\.yaml: No such file"):
        TrainingConfig.load(tmp_path / "absent.yaml")


def test_the_digest_changes_with_every_number_that_counts(tmp_path: Path) -> None:
    data = tmp_path / "images"
    same = configuration(data).digest
    assert configuration(data, checkpoint_interval_steps=77).digest == same
    assert configuration(data, distillation={"weight": 0.5}).digest == same  # a default, spelled out
    others = [
        configuration(data, **changes).digest
        for changes in (
            {"seed": 1},
            {"threads": 2},
            {"space": {"bits": [2, 8]}},
            {"augmentation": {"shift": 0}},
            {"weight_distribution": {"skewness_weight": 0.5}},
        )
    ]
    assert len({same, *others}) == 6


def test_data_and_seed_can_be_replaced(tmp_path: Path) -> None:
    config = configuration(tmp_path / "images")
    changed = config.overridden(data="digits", seed=9)
    assert (changed.data, changed.seed) == ("digits", 9)
    assert changed == config.overridden(data="digits").overridden(seed=9)
    assert config.overridden() == config
    with pytest.raises(ProfileError, match="seed"):
        config.overridden(seed=-1)


def test_probes_change_no_number(tmp_path: Path) -> None:
    config = configuration(tmp_path / "images")
    assert (config.probes, config.overridden(probes=0).probes, config.overridden(probes=64).probes) == (4, 0, 64)
    assert config.overridden(probes=0).digest == config.digest
    for wrong in (-1, 65):
        with pytest.raises(ProfileError, match="probes"):
            config.overridden(probes=wrong)


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = configuration(tmp_path / "images")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_augmentation_that_is_off_leaves_the_digest_as_it_was(load: Callable[[str], TrainingConfig]) -> None:
    off = {"crop_scale": None, "crop_ratio": [0.75, 4 / 3], "brightness": 0, "contrast": 0.0, "saturation": 0.0}
    assert load(text(augmentation=off)).digest == load(text()).digest
    assert load(text()).canonical()["augmentation"] == {"shift": 1, "flip": False}
    assert load(text(augmentation={"brightness": 0.1})).digest != load(text()).digest


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ({"kind": "sounds", "shape": [3]}, r"preprocessing: unknown kind of input.*named, tokens, values"),
        (
            {"kind": "values", "shape": [3], "size": 1},
            r"preprocessing\.size: unknown key.*keys are kind, shape",
        ),
        ({"kind": "values", "shape": [3], "mean": [0.0]}, r"preprocessing: mean must hold 3 numbers"),
        ({"kind": "tokens", "shape": [3]}, r"preprocessing\.vocabulary: the key is missing"),
        ({"kind": "named", "inputs": [{"name": "a", "kind": "tokens", "shape": [3]}]}, r"inputs\.0\.vocabulary"),
        (
            {"kind": "named", "inputs": [{"name": "a b", "kind": "values", "shape": [3]}]},
            "must be named like arguments",
        ),
    ],
)
def test_wrong_inputs_are_refused_with_their_line(
    load: Callable[[str], TrainingConfig], preprocessing: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProfileError, match=rf":\d+: .*{message}"):
        load(replaced(preprocessing=preprocessing, augmentation={}))


def test_only_images_are_varied(load: Callable[[str], TrainingConfig]) -> None:
    values = {"kind": "values", "shape": [3]}
    assert load(replaced(preprocessing=values, augmentation={})).preprocessing.to_preprocessing().shape == (3,)
    with pytest.raises(ProfileError, match="augmentation: only images are varied"):
        load(replaced(preprocessing=values, augmentation={"flip": True}))
