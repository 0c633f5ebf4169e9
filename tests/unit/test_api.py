"""The public surface: its names, its signatures, what becomes of its arguments, and its documents."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
import runpy
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

import eqdeploy
from eqdeploy import api, pipeline
from eqdeploy.errors import UsageError
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import (
    ConvertRequest,
    EvaluateRequest,
    ExportRequest,
    Gates,
    ResolveRequest,
    SearchOptions,
    SearchRequest,
    TrainRequest,
    ValidateRequest,
)

ROOT = Path(__file__).resolve().parents[2]

#: Every function that makes a request: its requests, the fields that have another name or are made of others, and
#: arguments that are no field.
REQUESTS: dict[str, tuple[tuple[type, ...], set[str], set[str]]] = {
    "convert_float": ((ConvertRequest,), set(), {"model", "preprocessing"}),
    "train": ((TrainRequest,), set(), set()),
    "resolve_profile": ((ResolveRequest,), set(), set()),
    "search_subnet": ((SearchRequest, SearchOptions), {"options"}, set()),
    "export": ((ExportRequest,), {"profiles"}, {"profile"}),
    "validate": ((ValidateRequest,), set(), {"artifact"}),
    "evaluate": ((EvaluateRequest,), set(), set()),
}

#: The function of the pipeline behind each, and how many arguments stand before the request.
PIPELINE = {
    "convert_float": "convert_float",
    "train": "train",
    "resolve_profile": "resolve_profile",
    "search_subnet": "search",
    "export": "export_profiles",
    "validate": "validate_artifact",
    "evaluate": "evaluate",
}

#: A value that no default is, for each argument.
GIVEN: dict[str, Any] = {
    "artifact": "an-artifact",
    "bits": (4, 8),
    "budgets": ("avg_weight_bits<=3",),
    "calibration_images": 7,
    "configuration": "a.train.yaml",
    "data": "some-images",
    "dynamic_size": True,
    "float_only": True,
    "force": True,
    "front": ("model_bytes",),
    "gates": Gates(max_drop=0.25),
    "generations": 12,
    "keep": 13,
    "latency": "times.csv",
    "loss": "losses:mine",
    "measurements": "measured",
    "model": "networks:make",
    "output": "a-folder",
    "parity_images": 14,
    "population": 15,
    "predictor": "a.predictor.safetensors",
    "preprocessing": None,
    "probes": 16,
    "profile": "a-profile",
    "resume": True,
    "run_code": True,
    "samples": 17,
    "search": SearchOptions(keep=3),
    "seed": 18,
    "strict": True,
    "subnet": "a-subnet.json",
    "supernet": "a-supernet",
    "target": "a.onnx",
    "tensorboard": "events",
    "weights": "weights.safetensors",
    "workspace": "a-workspace",
}


def test_the_names_are_those_that_are_there() -> None:
    assert dir(eqdeploy) == sorted(eqdeploy.__all__) == sorted([*api.__all__, "__version__"])
    for name in api.__all__:
        assert getattr(eqdeploy, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        getattr(eqdeploy, "exprot")  # noqa: B009 - mypy would find it


@pytest.mark.parametrize("name", eqdeploy.__all__)
def test_no_name_is_a_submodule(name: str) -> None:
    """Importing a submodule sets an attribute of the package, which would replace a function of that name."""
    assert importlib.util.find_spec(f"eqdeploy.{name}") is None


def parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(eqdeploy, name)).parameters)


@pytest.mark.parametrize("name", REQUESTS)
def test_signatures_are_those_of_the_requests(name: str) -> None:
    requests, without, further = REQUESTS[name]
    wanted = {field.name: field for request in requests for field in fields(request) if field.name not in without}
    found = parameters(name)
    assert found.pop("progress").default.__class__ is SilentProgress
    assert set(found) == set(wanted) | further
    for argument, field in wanted.items():
        default = found[argument].default
        if field.default_factory is not MISSING:
            assert default == field.default_factory()
        elif field.default is MISSING:
            assert default is inspect.Parameter.empty
        else:
            assert default == field.default


@pytest.mark.parametrize("name", sorted({*api.__all__} - {"EqDeployError", "Gates", "SearchOptions"}))
def test_every_argument_is_documented(name: str) -> None:
    documented = set(re.findall(r"^    (\w+): ", inspect.getdoc(getattr(eqdeploy, name)) or "", flags=re.MULTILINE))
    shared = set(re.findall(r"^\* ``(\w+)``", api.__doc__ or "", flags=re.MULTILINE))
    assert set(parameters(name)) <= documented | shared


@pytest.mark.parametrize("name", REQUESTS)
def test_every_argument_arrives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given under a name is what the pipeline finds under that name."""
    calls: list[tuple[object, ...]] = []
    answer = object()

    def record(*arguments: object) -> object:
        calls.append(arguments)
        return (answer,) if name == "export" else answer

    monkeypatch.setattr(pipeline, PIPELINE[name], record)
    requests, without, further = REQUESTS[name]
    listener = SilentProgress()
    given = {argument: GIVEN[argument] for argument in parameters(name) if argument != "progress"}
    function: Callable[..., object] = getattr(eqdeploy, name)
    assert function(**given, progress=listener) is answer
    ((*first, request, progress),) = calls
    assert progress is listener
    assert isinstance(request, requests)
    parts = [request, *(getattr(request, part) for part in without if part == "options")]
    arrived = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    if name == "export":
        assert arrived.pop("profiles") == ("a-profile",)
    if name == "validate":
        assert first == [Path("an-artifact")]
    for argument in set(given) - further:
        value = arrived[argument]
        assert (str(value) if isinstance(value, Path) else value) == given[argument], argument


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("export", "seed", -1),
        ("export", "calibration_images", 0),
        ("export", "parity_images", 0),
        ("validate", "seed", 1 << 63),
        ("validate", "parity_images", 0),
        ("evaluate", "seed", -1),
        ("evaluate", "calibration_images", -5),
        ("train", "seed", -1),
        ("search_subnet", "seed", -1),
        ("convert_float", "calibration_images", 0),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, argument: str, value: int) -> None:
    required = {key: GIVEN[key] for key, parameter in parameters(name).items() if parameter.default is parameter.empty}
    with pytest.raises(UsageError, match=rf"^{argument}: must be .*, got {value}$"):
        getattr(eqdeploy, name)(**{**required, argument: value})


def test_one_budget_is_not_a_list_of_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SearchRequest] = []
    monkeypatch.setattr(pipeline, "search", lambda request, _: seen.append(request))
    eqdeploy.search_subnet("tensorrt", budgets="avg_weight_bits<=3", front="model_bytes")
    (request,) = seen
    assert request.options.budgets == ("avg_weight_bits<=3",)
    assert request.options.front == ("model_bytes",)


def examples(text: str, name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_doctest(text, {}, name, name, 0).examples


def test_the_page_about_python_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one place where the examples that need an artifact run; those of docstrings are the same."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("```"))
    lines: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(doctest.DocTestParser().get_doctest(text, {}, "notebook.md", "notebook.md", 0), out=lines.append)
    assert runner.failures == 0, "".join(lines)


def test_examples_that_are_skipped_stand_on_the_page_about_python() -> None:
    page = examples((ROOT / "docs" / "notebook.md").read_text(encoding="utf-8"), "notebook.md")
    shown = {(re.sub(r"\s*#.*", "", example.source).strip(), example.want.removesuffix("```\n")) for example in page}
    shown.add(('result = eqdeploy.export("snpe-dsp", output="build")', ""))  # there with its defaults written out
    skipped = [
        (re.sub(r"\s*#.*", "", example.source).strip(), example.want)
        for name in api.__all__
        for example in examples(inspect.getdoc(getattr(eqdeploy, name)) or "", name)
        if example.options.get(doctest.SKIP)
    ]
    assert len(skipped) >= 6
    assert [example for example in skipped if example not in shown] == []


def test_the_readme_shows_a_part_of_the_page_about_python() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From Python")[2].partition("\n## ")[0]
    block = re.search(r"```pycon\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    assert [line for line in block.group(1).splitlines() if line not in page.splitlines()] == []


def test_the_reference_is_up_to_date() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["render"]
    committed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert committed == render(), "python docs/make_api.py writes it anew"


def test_the_reference_describes_everything_that_is_answered() -> None:
    answers = {answer.__name__ for answer in runpy.run_path(str(ROOT / "docs" / "make_api.py"))["ANSWERS"]}
    answered = {inspect.signature(getattr(eqdeploy, name)).return_annotation for name in REQUESTS}
    answered |= {inspect.signature(function).return_annotation for function in (api.load_supernet, api.open_artifact)}
    assert answered - {"Path"} <= answers
