"""Networks with ids, several inputs and several outputs, proved in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.data import InputPreprocessing, NamedPreprocessing, TokenPreprocessing, ValuePreprocessing
from eqdeploy.errors import DataError, UnsupportedOperationError
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.plan import EncodingSource
from eqdeploy.profile import load_profile, shipped_profiles
from eqdeploy.resolve import resolve
from eqdeploy.supernet.inputs import to_inputs
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.parity import ParityVerdict, check_parity
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.validation.runtime import Level
from eqdeploy.validation.static import check_static

VOCABULARY = 20
WORDS = TokenPreprocessing((6,), VOCABULARY)
SERIES = ValuePreprocessing((3, 6))


class Both(nn.Module):
    """Reads words and a series, returns scores and the hidden values in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.series = nn.Embedding(VOCABULARY, 4), nn.Conv1d(3, 4, 3, padding=1)
        self.scores, self.other = nn.Linear(4, 5), nn.Linear(4, 2)

    def forward(self, words: Tensor, series: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = torch.relu(self.embed(words).mean(1) + self.series(series).mean(2) * scale)
        return {"scores": self.scores(hidden), "other": self.other(hidden)}


def sentence() -> nn.Module:
    return nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten(), nn.Linear(24, 5))


CASES: dict[str, tuple[Callable[[], nn.Module], InputPreprocessing, tuple[str, ...]]] = {
    "ids": (sentence, WORDS, ("int64",)),
    "two inputs": (Both, NamedPreprocessing((("words", WORDS), ("series", SERIES))), ("int64", "float32")),
}


def stored(preprocessing: InputPreprocessing, count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    words, series = random.integers(0, VOCABULARY, (count, 6)), random.normal(size=(count, 3, 6))
    if not isinstance(preprocessing, NamedPreprocessing):
        return words
    records = np.empty(count, preprocessing.dtype)
    records["words"], records["series"] = words, series
    return records


@pytest.mark.parametrize("case", CASES)
def test_parity(case: str, tmp_path: Path) -> None:
    make, preprocessing, dtypes = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    supernet = Supernet.from_float(model, to_inputs(preprocessing.example(2)), ElasticSpace(bits=(8,))).eval()
    batch = preprocessing.apply(stored(preprocessing, 64))
    inputs = to_inputs(batch)
    supernet.initialize(inputs)
    plan = resolve(load_profile("onnxruntime-x86"), supernet.network, None)
    supernet.activate(plan.subnet)
    samples = sample_tensors(supernet, [inputs], tensors_to_calibrate(plan))
    frozen = freeze(supernet, plan, export_float_graph(supernet), samples)
    export_checked(get_exporter("onnx_qdq"), frozen, tmp_path, {})
    path = tmp_path / "model.onnx"
    read = onnx.load(path).graph.input
    found = [str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in read]
    assert tuple(found) == dtypes
    if isinstance(preprocessing, NamedPreprocessing):
        assert [value.name for value in read] == ["words", "series"]
    static = check_static(frozen, path)
    assert static.passed, static.summary
    parity = check_parity(frozen, path, batch, noun="inputs", levels=(Level.DISABLED, Level.ALL))
    assert parity.verdict is not ParityVerdict.FAILED, parity.summary
    assert "64 inputs" in parity.summary
    assert not any(supernet.network.tensor[name].integer for name in frozen.activations)
    simulated = supernet(inputs) if isinstance(inputs, Tensor) else supernet(**inputs)
    outputs = [simulated] if isinstance(simulated, Tensor) else list(simulated.values())
    exact = IntegerReference(frozen).run(batch).outputs
    for wanted, ours in zip(outputs, exact.values(), strict=True):
        assert np.abs(wanted.detach().numpy() - ours).max() < 0.05 * np.abs(ours).max()
    with pytest.raises(DataError, match="int64" if case == "ids" else "1 input"):
        check_parity(frozen, path, np.zeros((2, 6), np.float32))


def test_inputs_that_forward_does_not_take_are_refused() -> None:
    words, series = (torch.from_numpy(part.example(2)) for part in (WORDS, SERIES))
    with pytest.raises(UnsupportedOperationError, match=r"forward takes several inputs: words, series.*kind: named"):
        Supernet.from_float(Both(), words, ElasticSpace(bits=(8,)))
    for wrong in ({"series": series, "words": words}, {"words": words}, {"a": words, "b": series}):
        with pytest.raises(UnsupportedOperationError, match=r"forward takes words, series, scale.*in their order"):
            Supernet.from_float(Both(), wrong, ElasticSpace(bits=(8,)))


class Moved(nn.Module):
    """Moves its ids, and compares them, before it looks them up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(24, 5)

    def forward(self, words: Tensor) -> Tensor:
        moved = torch.cat([words, words.flip(1)], 1).reshape(-1, 2, 6)[:, 0]
        scores: Tensor = self.head(self.embed(moved).flatten(1))
        return scores


@pytest.mark.parametrize("profile", shipped_profiles())
def test_no_device_quantizes_ids(profile: str) -> None:
    supernet = Supernet.from_float(Moved().eval(), to_inputs(WORDS.example(2)), ElasticSpace())
    plan = resolve(load_profile(profile), supernet.network, None)
    ids = [tensor.name for tensor in supernet.network.tensors if tensor.integer]
    assert len(ids) == 5
    for name in ids:
        assert plan.tensor[name].source is EncodingSource.NONE
        assert "holds integers" in plan.tensor[name].reason


def test_an_embedding_that_gets_no_ids_says_what_to_write() -> None:
    with pytest.raises(UnsupportedOperationError, match="an embedding reads integers.*kind: tokens"):
        Supernet.from_float(sentence(), torch.zeros(2, 6), ElasticSpace(bits=(8,)))
