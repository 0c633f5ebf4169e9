"""Small networks with structures that the zoo does not have, under every shipped profile, proved in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.profile import load_profile, shipped_profiles
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.differences import Examiner, Kind
from eqdeploy.validation.parity import ParityVerdict, check_parity
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.validation.runtime import Level
from eqdeploy.validation.static import check_static
from tests.unit.supernet_parts import Net, conv, randomize


def sound() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 9, stride=2, padding=4),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 8, 5, padding=4, dilation=2, groups=2, padding_mode="circular"),
        nn.ReLU6(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _attend(m: Any, x: Tensor) -> Tensor:
    x = m.embed(x) + m.positions
    y = m.norm1(x)
    weights = torch.softmax(m.query(y) @ m.key(y).transpose(1, 2) / 4, -1)
    x = x + m.out(weights @ m.value(y))
    x = x + m.second(F.gelu(m.first(m.norm2(x))))
    result: Tensor = m.head(x.mean(1))
    return result


def transformer() -> nn.Module:
    layers: dict[str, nn.Module] = {name: nn.Linear(16, 16) for name in ("query", "key", "value", "out")}
    return Net(
        _attend,
        embed=nn.Linear(12, 16),
        positions=nn.Parameter(torch.randn(1, 10, 16) * 0.1),
        norm1=nn.LayerNorm(16),
        norm2=nn.LayerNorm(16),
        first=nn.Linear(16, 32),
        second=nn.Linear(32, 16),
        head=nn.Linear(16, 4),
        **layers,
    )


def _mixed(m: Any, x: Tensor) -> Tensor:
    """Blocks of ConvNeXt: LayerNorm over the channels, GELU, a learned scale for each channel."""
    stem = m.stem(x)
    y = m.norm(m.depthwise(stem).permute(0, 2, 3, 1))
    y = m.narrow(F.gelu(m.wide(y))).permute(0, 3, 1, 2)
    x = stem + y * m.scale.reshape(1, -1, 1, 1)
    pooled = F.max_pool2d(stem, 3, 1, 1).mean(1, keepdim=True)  # read by a layer and, moved, by a float operation
    maps = torch.cat([pooled, x.amax(1, keepdim=True)], 1)
    x = m.group(x) * torch.sigmoid(m.spatial(maps))
    result: Tensor = m.head(x.flatten(2).transpose(1, 2).mean(1))
    return result


def channels_last() -> nn.Module:
    return Net(
        _mixed,
        stem=conv(3, 8),
        depthwise=conv(8, 8, groups=8),
        norm=nn.LayerNorm(8),
        wide=nn.Linear(8, 16),
        narrow=nn.Linear(16, 8),
        scale=nn.Parameter(torch.rand(8)),
        group=nn.GroupNorm(2, 8),
        spatial=conv(2, 1, 7),
        head=nn.Linear(8, 4),
    )


def _clipped(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    y = m.b(x.clamp(max=0.8)) + m.c(x)  # a clip of a tensor that a layer reads, too
    z = m.d(F.hardtanh(F.relu(y), -1.0, 1.0))
    cut = torch.cat([y, z], 1)[:, :16]  # everything
    result: Tensor = m.head(m.e(cut * 1.0) + cut)
    return result


def clips_and_whole_slices() -> nn.Module:
    head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return Net(_clipped, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), d=conv(8, 8), e=conv(16, 16), head=head)


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sound": (sound, (3, 64)),
    "transformer": (transformer, (10, 12)),
    "channels last": (channels_last, (3, 12, 12)),
    "clips and whole slices": (clips_and_whole_slices, (3, 12, 12)),
}


def initialized(name: str) -> tuple[Supernet, FloatGraph, Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = randomize(make()).eval()
    images = torch.randn(12, *shape)
    supernet = Supernet.from_float(model, images[:2], ElasticSpace(bits=(2, 4, 7, 8))).eval()
    calibrate_batch_norm(supernet, [images])
    supernet.initialize(images)
    return supernet, export_float_graph(supernet), images


def frozen(supernet: Supernet, graph: FloatGraph, images: Tensor, profile: str) -> QuantizedModel:
    plan = resolve(load_profile(profile), supernet.network)
    supernet.activate(plan.subnet)
    calibrate_batch_norm(supernet, [images])
    return freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_profile_is_proved(name: str, tmp_path: Path) -> None:
    supernet, graph, images = initialized(name)
    for profile_name in shipped_profiles():
        profile = load_profile(profile_name)
        model = frozen(supernet, graph, images, profile_name)
        folder = tmp_path / profile_name
        folder.mkdir()
        options = {"opset": profile.runtime.opset, **profile.export.options}
        export_checked(get_exporter(profile.export.format), model, folder, options)
        static = check_static(model, folder / "model.onnx")
        assert static.passed, f"{profile_name}: {static.summary}"
        parity = check_parity(model, folder / "model.onnx", images[:3].numpy(), levels=(Level.DISABLED, Level.ALL))
        assert parity.verdict is not ParityVerdict.FAILED, f"{profile_name}: {parity.summary}"


def test_differences_in_tensors_without_a_batch_are_judged() -> None:
    """A learned scale is the same for all images, and a tensor may hold several entries for each image."""
    supernet, graph, images = initialized("channels last")
    model = frozen(supernet, graph, images, "onnxruntime-x86")
    reference = IntegerReference(model)
    batch = images[:3].numpy()
    expected = reference.run(batch).codes
    (scale,) = [name for name, codes in expected.items() if len(codes) == 1]
    for name in (scale, "stem"):
        seen = {tensor: codes.copy() for tensor, codes in expected.items()}
        seen[name].flat[-1] ^= 1
        found = Examiner(reference).compare(batch, expected, seen, frozenset())
        assert found[name].kinds == {Kind.UNEXPLAINED: 1}
    assert Examiner(reference).compare(batch, expected, expected, frozenset())[scale].differing == 0


def test_differences_in_tensors_with_several_entries_for_each_image_are_judged() -> None:
    model = Net(
        lambda m, x: m.b(F.relu(m.a(x)).flatten(0, 1)).unflatten(0, (-1, 6)), a=nn.Linear(5, 4), b=nn.Linear(4, 3)
    )
    torch.manual_seed(0)
    images = torch.randn(8, 6, 5)
    supernet = Supernet.from_float(model.eval(), images[:2], ElasticSpace(bits=(4, 8))).eval()
    supernet.initialize(images)
    quantized = frozen(supernet, export_float_graph(supernet), images, "snpe-dsp")
    reference = IntegerReference(quantized)
    batch = images[:3].numpy()
    expected = reference.run(batch).codes
    (flat,) = [name for name, codes in expected.items() if codes.shape == (18, 3)]
    seen = {tensor: codes.copy() for tensor, codes in expected.items()}
    seen[flat][17, 0] = 255 - seen[flat][17, 0]
    assert np.count_nonzero(seen[flat] != expected[flat]) == 1
    found = Examiner(reference).compare(batch, expected, seen, frozenset())
    assert found[flat].kinds == {Kind.UNEXPLAINED: 1}
