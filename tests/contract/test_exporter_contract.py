"""Every built-in exporter passes the contract tests, on each kind of model that its format can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from eqdeploy.errors import ValidationError
from eqdeploy.exporters.contract import Exporter, RecoveredEncodings, get_exporter
from eqdeploy.exporters.files import write_text
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ExporterContract, SampleForms, sample_model
from tests.contract.networks import ASYMMETRIC, LOW_BITS, SIGNED

NARROW_CHANNELS = SampleForms(
    weight=Form(8, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True, narrow=True), bias=BiasFormat.FLOAT
)
FOUR_BITS = SampleForms(
    weight=Form(4, Granularity.PER_CHANNEL, Symmetry.ASYMMETRIC, signed=True),
    activation=Form(5, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=False),
)


class TestOnnxQdq(ExporterContract):
    def make_exporter(self) -> Exporter:
        return get_exporter("onnx_qdq")


class TestOnnxQdqLowBitsOldOpset(TestOnnxQdq):
    def make_options(self) -> Mapping[str, object]:
        return {"opset": 13}

    def make_model(self) -> QuantizedModel:
        return sample_model(LOW_BITS)


class TestOnnxQdqExternalData(TestOnnxQdq):
    def make_options(self) -> Mapping[str, object]:
        return {"external_data_threshold": 1000, "opset": 25}

    def make_model(self) -> QuantizedModel:
        return sample_model(SIGNED, skip_only=True)


class TestSnpe(ExporterContract):
    def make_exporter(self) -> Exporter:
        return get_exporter("snpe")

    def make_model(self) -> QuantizedModel:
        return sample_model(ASYMMETRIC)


class TestSnpePerChannel(TestSnpe):
    def make_model(self) -> QuantizedModel:
        return sample_model(NARROW_CHANNELS)


class TestSnpeFourBits(TestSnpe):
    def make_options(self) -> Mapping[str, object]:
        return {"external_data_threshold": 1000, "float_opset": 17}

    def make_model(self) -> QuantizedModel:
        return sample_model(FOUR_BITS)


class TestTensorRt(ExporterContract):
    def make_exporter(self) -> Exporter:
        return get_exporter("tensorrt")

    def make_model(self) -> QuantizedModel:
        return sample_model(SIGNED, skip_only=True)


class TestTensorRtCalibrationCache(TestTensorRt):
    def make_options(self) -> Mapping[str, object]:
        return {"calibration_cache": True, "opset": 17}


class TestTensorRtCalibrationCacheExternalData(TestTensorRt):
    def make_options(self) -> Mapping[str, object]:
        return {"calibration_cache": True, "external_data_threshold": 1000}


class _Careless:
    """An exporter whose reader takes every tensor for 8 bits."""

    name = "careless"

    def describe(self) -> str:
        return "careless"

    def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
        return get_exporter("onnx_qdq").export(model, directory, options)

    def read(self, directory: Path) -> RecoveredEncodings:
        read = get_exporter("onnx_qdq").read(directory)
        activations = {name: replace(encoding, bits=8) for name, encoding in read.activations.items()}
        return RecoveredEncodings(activations, read.parameters)


def test_the_contract_fails_an_exporter_that_loses_widths(tmp_path: Path) -> None:
    class Careless(TestOnnxQdqLowBitsOldOpset):
        def make_exporter(self) -> Exporter:
            return _Careless()

    with pytest.raises(ValidationError, match="bits is 4 in the model and 8 in the files"):
        Careless().test_every_encoding_survives(tmp_path)


def test_the_contract_fails_an_exporter_that_writes_what_the_file_does_not_hold(tmp_path: Path) -> None:
    class Talkative(_Careless):
        def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
            reasons = write_text("".join(model.reasons.values()), directory, "reasons.txt")
            return (*super().export(model, directory, options), reasons)

    class Contract(TestOnnxQdq):
        def make_exporter(self) -> Exporter:
            return Talkative()

    Contract().test_same_model_gives_same_bytes(tmp_path)
    with pytest.raises(AssertionError, match=r"reasons\.txt is another one"):
        Contract().test_the_model_read_back_gives_the_same_files(tmp_path)


def test_the_contract_fails_an_exporter_that_hides_a_file(tmp_path: Path) -> None:
    class Hiding(_Careless):
        def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
            (directory / "hidden.txt").write_text("")
            return super().export(model, directory, options)

    class Contract(TestOnnxQdq):
        def make_exporter(self) -> Exporter:
            return Hiding()

    with pytest.raises(ValidationError, match=r"hidden\.txt"):
        Contract().test_every_encoding_survives(tmp_path)
