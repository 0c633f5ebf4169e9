"""The zoo: shapes, tracing, published state dicts, behaviour in training, and building from untrusted names."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import eqdeploy
from eqdeploy.data import DIGITS_PREPROCESSING, load_data
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import MissingDependencyError, UsageError
from eqdeploy.zoo import ARCHITECTURES, build
from eqdeploy.zoo.architectures import MAX_PARAMETERS
from eqdeploy.zoo.efficientnet import stochastic_depth
from eqdeploy.zoo.external import import_torchvision

SHAPES: dict[str, dict[str, list[int]]] = json.loads(
    Path(__file__).with_name("zoo_torchvision_shapes.json").read_text(encoding="utf-8")
)

#: Every architecture, and every option that changes its structure, at a size that is quick to run.
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("cifar-resnet20", {}),
    ("decoder", {}),
    ("decoder", {"width": 4, "classes": 5, "input_channels": 1}),
    ("densenet-small", {}),
    ("densenet-small", {"order": "bn-relu-conv"}),
    ("densenet-small", {"width": 1, "growth": 1, "depth": 1}),
    ("digits-resnet", {}),
    ("digits-resnet", {"width": 1, "classes": 1}),
    ("efficientnet_b0", {}),
    ("efficientnet_b0", {"width_multiplier": 0.25, "small_images": True, "drop_path": 0, "dropout": 0.0}),
    ("mlp", {}),
    ("mlp", {"depth": 1, "features": 192}),
    ("mobilenet_v2", {}),
    ("mobilenet_v2", {"width_multiplier": 0.25, "small_images": True, "classes": 7}),
    ("resnet18", {}),
    ("resnet18", {"width": 8, "small_images": True, "input_channels": 1}),
    ("resnet50", {"width": 16}),
]


def images_for(name: str, arguments: dict[str, object], batch: int = 2) -> Tensor:
    channels, height, width = ARCHITECTURES[name].input_shape
    if name == "mlp" and "features" in arguments:
        channels = 3
    asked = arguments.get("input_channels", channels)
    assert isinstance(asked, int)
    return torch.randn(batch, asked, min(height, 64), min(width, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_output_shape_and_trace(name: str, arguments: dict[str, object]) -> None:
    model = build(name, arguments).eval()
    images = images_for(name, arguments)
    classes = (ARCHITECTURES[name].defaults | arguments)["classes"]
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(traced(images), expected)
    assert expected.shape == ((2, classes, *images.shape[2:]) if name == "decoder" else (2, classes))
    assert torch.isfinite(expected).all()
    modules = dict(traced.named_modules())
    leaves = [modules[str(node.target)] for node in traced.graph.nodes if node.op == "call_module"]
    assert all(type(leaf).__module__.startswith("torch.nn") for leaf in leaves)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_trace_made_in_train_mode_follows_eval(name: str, arguments: dict[str, object]) -> None:
    model = build(name, arguments)
    images = images_for(name, arguments)
    traced = fx.symbolic_trace(model.train())
    model.eval()
    traced.eval()
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient(name: str, arguments: dict[str, object]) -> None:
    model = build(name, arguments)
    for module in model.modules():
        if isinstance(module, nn.Dropout3d):
            module.p = 0.0  # a dropped branch has no gradient
    model(images_for(name, arguments, batch=4)).square().sum().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_state_dict_is_torchvisions(name: str) -> None:
    state = build(name, {}).state_dict()
    assert [(key, list(tensor.shape)) for key, tensor in state.items()] == list(SHAPES[name].items())


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_torchvision_computes_the_same(name: str) -> None:
    try:
        import_torchvision()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    theirs = build(f"torchvision:{name}", {}).eval()
    assert {key: list(tensor.shape) for key, tensor in theirs.state_dict().items()} == SHAPES[name]
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = build(name, {}).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # published counts
        ("cifar-resnet20", 272_474),
        ("efficientnet_b0", 5_288_548),
        ("mobilenet_v2", 3_504_872),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
    ],
)
def test_number_of_parameters(name: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in build(name, {}).parameters()) == parameters


def test_cifar_resnet20_projects_where_the_shape_changes() -> None:
    state = build("cifar-resnet20", {}).state_dict()
    assert "layer1.0.downsample.0.weight" not in state
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert state["layer3.2.conv2.weight"].shape == (64, 64, 3, 3)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    branch = fx.symbolic_trace(nn.Sequential(stochastic_depth(0.25)))
    ones = torch.ones(4000, 2, 3, 3)
    dropped = branch(ones)
    per_image = dropped.reshape(4000, -1)
    assert (per_image == per_image[:, :1]).all()
    assert set(per_image[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(float(dropped.mean()) - 1) < 0.03
    branch.eval()
    assert torch.equal(branch(ones), ones)


def test_efficientnet_drops_more_towards_the_end() -> None:
    drops = [module.p for module in build("efficientnet_b0", {}).modules() if isinstance(module, nn.Dropout3d)]
    assert drops == sorted(drops)
    assert math.isclose(drops[-1], 0.2 * 15 / 16)


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build("digits-resnet", {}).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_digits_resnet_learns_the_digits() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model, augmentation = build("digits-resnet", {}), Augmentation(shift=1)
    assert 20_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 40_000
    train, test = (load_data("digits", split=split, preprocessing=DIGITS_PREPROCESSING) for split in ("train", "test"))
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(7):
        for rows in torch.split(torch.randperm(len(images), generator=generator), 32):
            optimizer.zero_grad()
            variation = augmentation.draw(len(rows), generator)
            logits = model(augmentation.vary(images[rows], DIGITS_PREPROCESSING, variation))
            torch.autograd.backward(nn.functional.cross_entropy(logits, labels[rows]))
            optimizer.step()
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(DIGITS_PREPROCESSING.apply(test.images)))
    assert (logits.argmax(1) == torch.from_numpy(test.labels)).float().mean() > 0.9


def test_every_architecture_describes_itself() -> None:
    for name, spec in ARCHITECTURES.items():
        assert spec.summary, name
        assert spec.defaults, name
        assert all(isinstance(value, int | float | str) for value in spec.defaults.values()), name
    with pytest.raises(TypeError):
        ARCHITECTURES["mine"] = ARCHITECTURES["mlp"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_resnet", "unknown architecture 'digits_resnet' (did you mean 'digits-resnet'?)"),
        ("resnet-18", "did you mean 'resnet18'?"),
        ("", "there are cifar-resnet20, decoder"),
        ("os:system", "unknown architecture 'os:system'"),
        ("package.module:factory", "your own model is given as package.module:factory on the command line"),
        ("\x1b[2J" * 1000, "unknown architecture '\\x1b[2J"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(name, {})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"clases": 3}, "resnet18: unknown argument 'clases' (did you mean 'classes'?)"),
        ("mlp", {"zzz": 3}, "mlp: unknown argument 'zzz' (it takes features, width, depth, classes)"),
        ("resnet18", {"classes": True}, "resnet18: classes: input should be a valid integer, not True"),
        ("resnet18", {"classes": "3"}, "not '3'"),
        ("resnet18", {"classes": 3.0}, "not 3.0"),
        ("resnet18", {"classes": None}, "not None"),
        ("resnet18", {"classes": [3]}, "not [3]"),
        ("resnet18", {"classes": 0}, "greater than or equal to 1, not 0"),
        ("resnet18", {"classes": 10**30}, "resnet18: classes: "),
        ("resnet18", {"small_images": 1}, "valid boolean, not 1"),
        ("mobilenet_v2", {"dropout": math.nan}, "finite number, not nan"),
        ("mobilenet_v2", {"dropout": 1.0}, "less than 1, not 1.0"),
        ("mobilenet_v2", {"width_multiplier": 0.0}, "greater than or equal to 0.05"),
        ("densenet-small", {"order": "conv"}, "'conv-bn-relu' or 'bn-relu-conv', not 'conv'"),
        ("densenet-small", {"order": "x" * 10**6}, "not 'xxx"),
        ("resnet50", {"width": 512}, "more than 256,000,000"),
        ("mlp", {"features": 1_000_000, "width": 16_384}, "more than 256,000,000"),
        ("resnet18", {"x" * 10**6: 1}, "unknown argument 'xxx"),
    ],
)
def test_arguments_are_checked_strictly(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(name, arguments)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_limit_leaves_room_for_the_largest_published_model() -> None:
    assert sum(parameter.numel() for parameter in build("resnet50", {}).parameters()) * 10 < MAX_PARAMETERS


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_packages_that_are_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"torchvision is not installed \(pip install"):
        build(f"{package}:resnet18", {})


@pytest.mark.parametrize(
    "name", ["torchvision:resnet181", "torchvision:fasterrcnn_resnet50_fpn", "torchvision:", "torchvision:models"]
)
def test_unknown_torchvision_models(name: str) -> None:
    try:
        import_torchvision()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with pytest.raises(UsageError, match="no classification model"):
        build(name, {})


@pytest.mark.parametrize("arguments", [{"weights": "DEFAULT"}, {"progress": True}, {"classes": "7"}])
def test_torchvision_arguments_are_checked(arguments: dict[str, Any]) -> None:
    try:
        import_torchvision()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with pytest.raises(UsageError):
        build("torchvision:resnet18", arguments)
    assert build("torchvision:resnet18", {"classes": 7}).get_parameter("fc.bias").shape == (7,)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "resnet18.a1_in1k", "resnet181"])
def test_timm_never_fetches(name: str) -> None:
    try:
        build("timm:resnet10t", {"classes": 3})
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with pytest.raises(UsageError, match="timm has no classification model"):
        build(f"timm:{name}", {})


STUB_OF_A_CUDA_BUILD = """
import torch
if torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "Meta"):
    raise SystemExit("the operator was there before")
"""


def write_package(folder: Path, content: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(content, encoding="utf-8")


def test_torchvision_built_for_cuda_imports_on_a_cpu_build_of_torch(tmp_path: Path) -> None:
    write_package(tmp_path, STUB_OF_A_CUDA_BUILD)
    paths = [str(tmp_path), str(Path(eqdeploy.__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {paths!r}; from eqdeploy.zoo import external; external.import_torchvision()"
    subprocess.run([sys.executable, "-c", code], check=True)  # another process: operators cannot be taken back


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise RuntimeError('another version')", "another version"),
        ("import not_there", "No module named 'not_there'"),
    ],
)
def test_torchvision_that_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    write_package(tmp_path, content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingDependencyError, match=f"torchvision is installed but cannot be imported: {message}"):
        build("torchvision:resnet18", {})
