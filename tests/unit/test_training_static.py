"""Static training: one form, the yardstick of a supernet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eqdeploy.errors import ProfileError
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.training.trainer import train
from tests.unit.training_support import configuration, small_model, write_images

FORM = {"bits": 2, "granularity": "per_tensor", "symmetry": "asymmetric"}


def test_only_the_scales_of_its_form_learn(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    result = train(configuration(data, static=FORM), tmp_path / "run", model=small_model())
    start = train(
        configuration(data, static=FORM, supernet_training={"epochs": 0}), tmp_path / "0", model=small_model()
    )
    assert result.checkpoint is not None
    assert start.checkpoint is not None
    trained, initial = (
        load_checkpoint(path, lambda *_: small_model(), small_model()).supernet.state_dict()
        for path in (result.checkpoint, start.checkpoint)
    )
    moved = {
        name.rpartition(".")[2]
        for name, value in trained.items()
        if "weight_quantizer.log2_scale" in name and not value.equal(initial[name])
    }
    assert moved == {"2-per_tensor-asymmetric-signed", "8-per_tensor-asymmetric-signed"}  # 8 bits at the boundary


def test_one_subnet_a_step_and_one_row_at_the_end(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    result = train(configuration(data, static=FORM), tmp_path / "run", model=small_model())
    lines = [json.loads(line) for line in result.log.read_text().splitlines()]
    steps = [line for line in lines if line.get("phase") == "supernet"]
    assert steps
    assert all("static" in line and "highest" not in line for line in steps)
    assert result.evaluation is not None
    (row,) = result.evaluation.rows
    assert (row.bits, row.granularity, row.symmetry) == (2, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC)


def test_a_form_outside_of_the_space_is_refused(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    with pytest.raises(ProfileError, match=r"static\.bits: 3 is not in the space"):
        configuration(data, static={**FORM, "bits": 3})
