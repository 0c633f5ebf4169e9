"""Models of the user's own: ``package.module:factory`` from the working directory or the import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from eqdeploy.errors import UsageError
from eqdeploy.zoo import load_factory

CONTENT = """
import torch
from torch import nn

MODEL = nn.Linear(2, 3)
NUMBER = 3

def make():
    from user_zoo import helper
    return nn.Linear(2, helper.OUTPUTS)

def no_module():
    return {"weights": 3}

def needs_arguments(width):
    return nn.Linear(width, 3)

def fails():
    raise ValueError("something\\nis wrong")

class Models:
    @staticmethod
    def make():
        return nn.Linear(2, 5)
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "user_zoo"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(CONTENT, encoding="utf-8")
    (package / "helper.py").write_text("OUTPUTS = 4", encoding="utf-8")
    (package / "broken.py").write_text("def make(:", encoding="utf-8")
    (package / "needs_more.py").write_text("import not_installed_anywhere", encoding="utf-8")
    (package / "stops.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "user_zoo"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_function_itself() -> None:
    model = load_factory(lambda: nn.DataParallel(nn.Linear(2, 6)))
    assert isinstance(model, nn.Linear)
    assert model.out_features == 6


def test_functions_that_make_no_model() -> None:
    def makes_none() -> nn.Module:
        return None  # type: ignore[return-value]

    with pytest.raises(UsageError, match="makes_none: returned NoneType, not a torch.nn.Module"):
        load_factory(makes_none)
    with pytest.raises(UsageError, match="model: model is a Linear, not a function that makes a model"):
        load_factory(nn.Linear(2, 3))


def test_factory_in_the_working_directory() -> None:
    path = list(sys.path)
    model = load_factory("user_zoo.models:make")
    assert isinstance(model, nn.Linear)
    assert model.out_features == 4
    assert sys.path == path
    nested = load_factory("user_zoo.models:Models.make")
    assert isinstance(nested, nn.Linear)
    assert nested.out_features == 5


def test_factory_on_the_import_path() -> None:
    assert isinstance(load_factory("eqdeploy.zoo.digits:digits_resnet"), nn.Module)
    assert isinstance(load_factory("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("user_zoo.models", "write package.module:factory"),
        ("user_zoo.models:", "write package.module:factory"),
        (":make", "write package.module:factory"),
        ("user_zoo/models.py:make", "write package.module:factory"),
        ("user_zoo.models:make()", "write package.module:factory"),
        ("..models:make", "write package.module:factory"),
        ("nowhere_at_all:make", "no module named 'nowhere_at_all'"),
        ("user_zoo.nowhere:make", "no module named 'user_zoo.nowhere'"),
        ("user_zoo.needs_more:make", "the module needs 'not_installed_anywhere', not installed"),
        ("user_zoo.broken:make", "importing it raised SyntaxError"),
        ("user_zoo.stops:make", "importing it raised ZeroDivisionError: division by zero"),
        ("user_zoo.models:mke", "user_zoo.models has no attribute 'mke'"),
        ("user_zoo.models:Models.mke", "user_zoo.models has no attribute 'Models.mke'"),
        ("user_zoo.models:NUMBER", "NUMBER is a int, not a function"),
        ("user_zoo.models:MODEL", "MODEL is a Linear, not a function"),
        ("user_zoo.models:needs_arguments", "the factory must take no arguments: missing a required argument: 'width'"),
        ("user_zoo.models:no_module", "returned dict, not a torch.nn.Module"),
        ("user_zoo.models:fails", "the factory raised ValueError: something is wrong"),
    ],
)
def test_errors_are_one_line_and_name_the_reference(reference: str, message: str) -> None:
    path = list(sys.path)
    with pytest.raises(UsageError) as caught:
        load_factory(reference)
    assert message in str(caught.value)
    assert str(caught.value).startswith(reference)
    assert "\n" not in str(caught.value)
    assert sys.path == path
