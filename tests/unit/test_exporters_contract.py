"""Finding exporters by name, their options, and the round-trip check."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqdeploy.errors import MissingDependencyError, OutputError, ProfileError, ValidationError
from eqdeploy.exporters import contract
from eqdeploy.exporters.contract import (
    ENTRY_POINT_GROUP,
    RecoveredEncodings,
    check_round_trip,
    exporter_names,
    get_exporter,
)
from eqdeploy.exporters.opset import OPSETS
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model


def install(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    """Pretend that installed packages declare these entry points."""
    monkeypatch.setattr(contract, "entry_points", lambda group: list(entries) if group == ENTRY_POINT_GROUP else [])


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, ENTRY_POINT_GROUP)


def test_built_in_exporters_are_listed_and_made() -> None:
    assert {"onnx_qdq", "snpe", "tensorrt"} <= set(exporter_names())
    for name in ("onnx_qdq", "snpe", "tensorrt"):
        assert get_exporter(name).name == name


def test_unknown_exporter_suggests_the_nearest() -> None:
    with pytest.raises(ProfileError, match="did you mean 'onnx_qdq'"):
        get_exporter("onnx-qdq")
    with pytest.raises(ProfileError, match="there are: onnx_qdq"):
        get_exporter("zzzzzzzz")


def test_installed_exporter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, entry("mine", "tests.unit.test_exporters_contract:Mine"))
    assert "mine" in exporter_names()
    assert get_exporter("mine").describe() == "mine"


class Mine:
    """The smallest exporter."""

    name = "mine"

    def describe(self) -> str:
        return "mine"

    def export(self, model: object, directory: Path, options: object) -> tuple[str, ...]:
        return ()

    def read(self, directory: Path) -> RecoveredEncodings:
        return RecoveredEncodings()


def test_two_claims_on_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, entry("snpe", "other.package:Snpe"))
    with pytest.raises(ProfileError, match=r"'snpe' is claimed 2 times: .*other\.package:Snpe"):
        get_exporter("onnx_qdq")
    install(monkeypatch, entry("a", "one:A"), entry("a", "two:A"))
    with pytest.raises(ProfileError, match="one:A, two:A"):
        exporter_names()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("no_such_package_at_all:Exporter", MissingDependencyError, "no_such_package_at_all"),
        ("eqdeploy.errors:NoSuchThing", ProfileError, "NoSuchThing"),
        ("eqdeploy:__version__", ProfileError, "not a class or function"),
        ("pathlib:Path", ProfileError, "is no exporter"),
        ("tests.unit.test_exporters_contract:Mine", ProfileError, "calls itself 'mine'"),
    ],
)
def test_broken_entry_points_are_explained(
    value: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, entry("broken", value))
    with pytest.raises(error, match=message):
        get_exporter("broken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opsett": 21}, "did you mean 'opset'"),
        ({"opset": 12}, r"options\.opset: .*greater than or equal to 13, got 12"),
        ({"opset": OPSETS.stop}, f"less than or equal to {OPSETS[-1]}"),
        ({"opset": "21"}, "valid integer, got '21'"),
        ({"opset": True}, "valid integer"),
        ({"external_data_threshold": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=message):
        get_exporter("onnx_qdq").export(sample_model(), tmp_path, options)
    assert not list(tmp_path.iterdir())


def small_model() -> QuantizedModel:
    """A model whose encodings leave room to change every property and stay valid."""
    b = ModelBuilder(SampleForms(bias=BiasFormat.FLOAT))
    x = b.encode(b.input("x", 4), encoding=Encoding.per_tensor(0.5, 3, 1, 6, 4, signed=False))
    model = b.build(b.layer("head", "Gemm", x, (2, 4), transB=1))
    weight = QuantizedParameter("head.weight", np.full((2, 4), 2, np.int32), model.activations["x"].encoding)
    return replace(model, parameters={"head.weight": weight})


def changed(encoding: Encoding, key: str) -> Encoding:
    """The encoding with one property changed."""
    values: dict[str, Any] = {
        "scale": np.nextafter(encoding.scale, np.float32(1)),
        "zero_point": (encoding.zero_point + 1).astype(np.int32),
        "q_min": encoding.q_min - 1,
        "q_max": encoding.q_max + 1,
        "bits": encoding.bits + 1,
        "signed": not encoding.signed,
    }
    return replace(encoding, **{key: values[key]})


@pytest.mark.parametrize("key", ["scale", "zero_point", "q_min", "q_max", "bits", "signed"])
@pytest.mark.parametrize("section", ["activations", "parameters"])
def test_round_trip_notices_every_property(key: str, section: str) -> None:
    model = small_model()
    recovered = RecoveredEncodings.of(model)
    check_round_trip(model, recovered)
    if section == "activations":
        name = "x"
        recovered.activations[name] = changed(recovered.activations[name], key)
    else:
        name = "head.weight"
        codes, encoding = recovered.parameters[name]
        recovered.parameters[name] = codes, changed(encoding, key)
    with pytest.raises(ValidationError, match=f"{name}: {key} is "):
        check_round_trip(model, recovered)


def test_round_trip_notices_codes_and_names() -> None:
    model = sample_model()
    recovered = RecoveredEncodings.of(model)
    codes, encoding = recovered.parameters["head.weight"]
    assert codes is not None
    wrong = codes.copy()
    wrong[0, 0] ^= 1
    recovered.parameters["head.weight"] = wrong, encoding
    with pytest.raises(ValidationError, match=r"head\.weight: 1 of 30 integer codes differ"):
        check_round_trip(model, recovered)
    recovered.parameters["head.weight"] = codes, encoding
    recovered.activations["stranger"] = recovered.activations.pop("gap")
    with pytest.raises(ValidationError, match="gap: the files hold no encoding"):
        check_round_trip(model, recovered)
    recovered.activations["gap"] = recovered.activations["stranger"]
    with pytest.raises(ValidationError, match="stranger: the files hold an encoding"):
        check_round_trip(model, recovered)


def test_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(OutputError, match=r"model\.onnx: cannot write"):
        get_exporter("onnx_qdq").export(sample_model(), tmp_path, {})


def test_package_has_one_name_only() -> None:
    root = Path(contract.__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", "import exporters"], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "import eqdeploy.exporters" in run.stderr


def test_exporters_do_not_import_torch() -> None:
    root = Path(contract.__file__).resolve().parent.parent
    program = (
        "import sys, pkgutil, importlib, eqdeploy.exporters as e\n"
        "[importlib.import_module(f'eqdeploy.exporters.{m.name}') for m in pkgutil.iter_modules(e.__path__)]\n"
        "sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
