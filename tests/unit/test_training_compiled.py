"""The compiled supernet against the eager one: the same numbers, one graph for all forms, resumable runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional

from eqdeploy.network import ElasticSpace
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.compiled import CompiledSupernet, compiler_available
from eqdeploy.training.sampling import sample_subnet
from eqdeploy.training.settings import FormSampling
from eqdeploy.training.state import Phase
from eqdeploy.training.trainer import train
from tests.unit.training_support import (
    CLASSES,
    ROOT,
    Interrupter,
    Listener,
    configuration,
    files,
    small_model,
    small_supernet,
    write_images,
)

# Torch's compiler warns of its own code, where an exception in place of a warning would stop it.
pytestmark = pytest.mark.filterwarnings("ignore")

needs_compiler = pytest.mark.skipif(not compiler_available(), reason="torch needs a C++ compiler to compile")

BITS = (2, 4, 8)


def subnets(supernet: Supernet) -> list[SubnetConfig]:
    """Every granularity and symmetry in the whole network, and mixtures of all forms."""
    generator = torch.Generator().manual_seed(0)
    uniform = [
        SubnetConfig.uniform(
            supernet.network,
            weight_bits=bits,
            activation_bits=bits,
            granularity=granularity,
            weight_symmetry=symmetry,
            activation_symmetry=symmetry,
        )
        for bits in BITS
        for granularity in Granularity
        for symmetry in Symmetry
    ]
    mixed = [sample_subnet(supernet.network, generator, bits=BITS, sampling=FormSampling.PER_LAYER) for _ in range(12)]
    return [*uniform, *mixed]


class Pass:
    """One forward and backward pass: logits, gradients, and the BatchNorm statistics after it."""

    def __init__(self, supernet: Supernet, run: Any, images: Tensor, labels: Tensor) -> None:
        before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
        self.logits: Tensor = run(images)
        torch.autograd.backward(functional.cross_entropy(self.logits, labels))
        self.gradients = {
            name: parameter.grad.clone()
            for name, parameter in supernet.named_parameters()
            if parameter.grad is not None
        }
        self.statistics = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
        supernet.zero_grad(set_to_none=True)
        for name, buffer in supernet.named_buffers():
            buffer.copy_(before[name])


def assert_equal_up_to_rounding(compiled: Pass, eager: Pass, where: object) -> None:
    torch.testing.assert_close(compiled.logits, eager.logits, rtol=1e-5, atol=1e-6)
    assert compiled.gradients.keys() == eager.gradients.keys(), where
    for name, gradient in eager.gradients.items():
        # Sums of terms that cancel each other, as in front of a BatchNorm, are accurate relative to the terms.
        torch.testing.assert_close(compiled.gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=f"{name}: {where}")
    for name, buffer in eager.statistics.items():
        torch.testing.assert_close(compiled.statistics[name], buffer, rtol=1e-5, atol=1e-6, msg=name)


@needs_compiler
def test_one_graph_serves_all_subnets_and_computes_what_the_eager_supernet_does() -> None:
    torch.compiler.reset()
    counters.clear()
    supernet = small_supernet(ElasticSpace(bits=BITS)).train()
    dropout = supernet.graph_module.get_submodule("dropout")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0  # compiled, it draws other random numbers
    run = CompiledSupernet(supernet)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (16,), generator=generator)

    found = subnets(supernet)
    weights = {form for subnet in found for _, form in subnet.weights}
    activations = {form for subnet in found for _, form in subnet.activations}
    assert weights == set(supernet.network.space.weight_forms())
    assert {form.signed for form in activations} == {True, False}
    assert {form.symmetry for form in activations} == set(Symmetry)
    for subnet in found:
        supernet.activate(subnet)
        compiled = Pass(supernet, run, images, labels)
        assert_equal_up_to_rounding(compiled, Pass(supernet, supernet, images, labels), subnet)
        assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]

    # With other parameters, as after a step, the same graph computes other numbers.
    before = compiled.logits
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.01)
    compiled = Pass(supernet, run, images, labels)
    assert not torch.allclose(compiled.logits, before)
    assert_equal_up_to_rounding(compiled, Pass(supernet, supernet, images, labels), "after a step")
    assert counters["stats"]["unique_graphs"] == 1

    supernet.deactivate()
    assert_equal_up_to_rounding(
        Pass(supernet, run, images, labels), Pass(supernet, supernet, images, labels), "the float network"
    )
    assert counters["stats"]["unique_graphs"] == 2
    supernet.activate(found[0])
    Pass(supernet, run, images, labels)
    assert counters["stats"]["unique_graphs"] == 2


@needs_compiler
def test_evaluation_compiles_once_for_the_largest_batch() -> None:
    torch.compiler.reset()
    counters.clear()
    supernet = small_supernet(ElasticSpace(bits=BITS)).eval()
    run = CompiledSupernet(supernet)
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for subnet in subnets(supernet)[::5]:
            supernet.activate(subnet)
            for count in (12, 5, 1):
                logits = run(images[:count])
                assert logits.shape == (count, CLASSES)
                torch.testing.assert_close(logits, supernet(images[:count]), rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@needs_compiler
def test_a_run_with_all_that_makes_it_fast_ends_alike_after_a_kill(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    phase = {"epochs": 1, "optimizer": "sgd", "learning_rate": 0.01, "average_decay": 0.9}
    config = configuration(
        data,
        float_training=phase,
        supernet_training=phase,
        execution={"precision": "bfloat16", "channels_last": True, "compile": True},
        checkpoint_interval_steps=2,
    )
    torch.compiler.reset()
    counters.clear()
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(config, straight, model=small_model())
    assert counters["stats"]["unique_graphs"] == 4  # float and quantized, training and evaluation
    with pytest.raises(KeyboardInterrupt):
        train(config, resumed, model=small_model(), progress=Interrupter(3, f"{Phase.SUPERNET} network"))
    result = train(config, resumed, resume=True, model=small_model())
    assert result.resumed_at is not None
    assert (result.resumed_at.phase, result.resumed_at.step) == (Phase.SUPERNET, 2)
    assert files(resumed) == files(straight)


def without_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the path name a folder without programs."""
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)


def test_a_compiler_is_looked_for_where_torch_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(tmp_path / "empty", monkeypatch)
    assert not compiler_available()
    compiler = tmp_path / "my-compiler"
    compiler.write_text("#!/bin/sh\n")
    monkeypatch.setenv("CXX", str(compiler))
    assert not compiler_available()  # no program
    compiler.chmod(0o755)
    assert compiler_available()


def test_without_a_compiler_a_run_goes_on_without_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiler(tmp_path / "empty", monkeypatch)
    data = write_images(tmp_path / "images")
    changes: dict[str, Any] = {
        "float_training": {"epochs": 1},
        "supernet_training": {"epochs": 1},
        "distillation": {"guidance": "float"},
    }
    listener = Listener()
    compiled = train(
        configuration(data, execution={"compile": True}, **changes),
        tmp_path / "compiled",
        model=small_model(),
        progress=listener,
    )
    eager = train(configuration(data, **changes), tmp_path / "eager", model=small_model())
    assert [note for note in listener.notes if "compil" in note] == [
        "no C++ compiler is installed: training runs without compilation, two to three times slower"
    ]
    assert compiled.evaluation == eager.evaluation
    assert files(tmp_path / "compiled")["float.safetensors"] == files(tmp_path / "eager")["float.safetensors"]


#: Torch reads the name of the compiler when it is imported.
COMPILATION = """
import torch
from eqdeploy.errors import TrainingError
from eqdeploy.training.compiled import CompiledSupernet
from tests.unit.training_support import small_supernet

supernet = small_supernet().train()
try:
    CompiledSupernet(supernet)(torch.randn(4, 1, 8, 8))
except TrainingError as error:
    print(error)
assert supernet.weight_quantizer("conv1").bound is None
"""


def test_a_compiler_that_fails_is_named_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", COMPILATION],
        cwd=ROOT,
        env={**os.environ, "CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("execution.compile: the network cannot be compiled: ")
    assert "C++ compiler" in done.stdout
    assert done.stdout.endswith(" (set it to false)\n")
    assert done.stdout.count("\n") == 1
