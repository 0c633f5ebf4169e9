"""``docs/training.md`` documents every key of a training configuration, with its default, and only those."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.input_settings import NamedSettings, TokenSettings, ValueSettings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
PHASES = ("float_training", "supernet_training")


def sections(annotation: object) -> list[type[BaseModel]]:
    """The section that a key holds, maybe or always."""
    options = get_args(annotation) or (annotation,)
    if get_origin(options[0]) is Annotated:  # alternatives that a key tells apart: the table has the first one
        options = (get_args(options[0])[0],)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its default; those that both phases share are under ``…``."""
    shared, *_ = sections(TrainingConfig.model_fields["float_training"].annotation)
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        for inner in sections(field.annotation):
            for inner_key, default in keys(inner, f"{key}."):
                _, _, last = inner_key.rpartition(".")
                own = f"….{last}" if name in PHASES and last in shared.model_fields else inner_key
                yield own, () if default == "required" and not field.is_required() else default
        if not sections(field.annotation):
            yield key, "required" if field.is_required() else field.default


def documented() -> dict[str, str]:
    """Keys of the table with the text of their defaults."""
    table = TEXT.split("| key | default | |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) ?\|", table, flags=re.MULTILINE)
    return {key: default.strip() for names, default in rows for key in re.findall(r"`([^`]*)`", names)}


def test_every_key_is_documented_and_no_other() -> None:
    assert set(documented()) - set(PHASES) == dict(keys(TrainingConfig)).keys()


@pytest.mark.parametrize("key", [*dict(keys(TrainingConfig))])
def test_defaults_are_documented(key: str) -> None:
    text, default = documented()[key], dict(keys(TrainingConfig))[key]
    if text == "none":
        assert not default
        assert default is not None
    elif text.startswith("`"):
        assert text.strip("`") == str(default)
    elif text in ("1/255", "2 to 8", "both", "null, [3/4, 4/3]"):
        assert default != "required", "in words"
    else:
        assert yaml.safe_load(text) == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("section", [ValueSettings, TokenSettings, NamedSettings])
def test_inputs_that_are_no_images_are_documented(section: type[BaseModel]) -> None:
    text = TEXT.split("### Inputs that are no images", 1)[1].split("\n## ", 1)[0]
    (kind,) = get_args(section.model_fields["kind"].annotation)
    row = next(line for line in text.splitlines() if line.startswith(f"| `{kind}`"))
    assert all(f"`{name}`" in row for name in section.model_fields if name != "kind")
