"""Symbolic tracers: torch's own, and one for which every size but that of the batch is a number."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import Attribute, TraceError

from eqdeploy.supernet.inputs import Inputs, map_inputs, parts

#: Batch sizes under which sizes are looked up. What is equal for the first two is a constant; what a branch decides
#: must be equal for all of them that the model accepts.
_BATCHES = (6, 35, 1)

#: Functions that make a tensor from sizes alone, which are recorded where a size depends on the batch.
_FACTORIES = (torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange, torch.linspace)

_UNKNOWN = object()


class PathTracer(fx.Tracer):
    """Torch's tracer, with stochastic depth kept whole and the path of the module being traced."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.path: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return type(m).__name__ in ("StochasticDepth", "DropPath") or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a module and note its path."""
        self.path.append(self.path_of_module(m))
        # Not in a finally clause: after an exception the path must still say where it happened.
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()
        return result


class ConstantShapeTracer(PathTracer):
    """A tracer for models that branch on shapes, loop over them or compute with them.

    Sizes are looked up by running the recorded nodes on tensors without values, only once one is asked for. A size
    that depends on the batch stays symbolic.

    Args:
        example_input: One batch; only its shape behind the batch axis, its dtype and its device matter.
    """

    def __init__(self, example_input: Inputs) -> None:
        super().__init__(autowrap_functions=_FACTORIES)
        self._autowrap_search.append(torch)
        self._example_input = example_input
        self._runs: tuple[_Run, ...] = ()
        self._is_running = False
        self.device_type: str = parts(example_input)[0].device.type

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace as torch does."""
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:  # the generated code would wrap torch's functions for good
            node.meta.pop("is_wrapped", None)
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows its sizes."""
        return _SizedProxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call, or run it while sizes are looked up."""
        if self._is_running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for a parameter, the parameter itself while sizes are looked up."""
        return attr_val if self._is_running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """What a condition on sizes is for every batch size."""
        values = [value for value in self.values(obj.node) if value is not _UNKNOWN]
        if not values or any(isinstance(value, Tensor) for value in values):
            raise TraceError(f"a decision depends on the values of the tensor {obj.node.name!r}")
        if len({bool(value) for value in values}) != 1:
            raise TraceError(f"a decision depends on the batch size ({obj.node.name!r})")
        return bool(values[0])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over a known number of entries."""
        return iter([self.entry(obj, index) for index in range(len(obj))])

    def entry(self, obj: fx.Proxy, index: int) -> fx.Proxy:
        """An entry of what a node computes."""
        return self.create_proxy("call_function", operator.getitem, (obj, index), {})

    def number(self, obj: fx.Proxy) -> Any:
        """The number that a node computes from sizes.

        Raises:
            TraceError: If it depends on the batch or on the values of tensors.
        """
        first, second = self.values(obj.node)[:2]
        if not isinstance(first, int | float) or first != second:
            raise TraceError(f"a number is asked for that depends on the batch size or on values ({obj.node.name!r})")
        return first

    def values(self, node: fx.Node) -> list[Any]:
        """What a node computes for each batch size, tensors without values."""
        if not self._runs:
            self._runs = tuple(_Run(self.root, self._example_input, batch) for batch in _BATCHES)
        self._is_running = True
        try:
            return [run.value(node) for run in self._runs]
        finally:
            self._is_running = False


class _SizedProxy(fx.Proxy):
    """A proxy that knows its sizes."""

    tracer: ConstantShapeTracer

    @property
    def shape(self) -> Any:
        """Sizes as numbers, proxies where they depend on the batch."""
        first, second = self.tracer.values(self.node)[:2]
        if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.dim() != second.dim():
            return Attribute(self, "shape")
        return tuple(
            size if size == other else self.tracer.entry(Attribute(self, "shape"), axis)
            for axis, (size, other) in enumerate(zip(first.shape, second.shape, strict=True))
        )

    def size(self, dim: int | None = None) -> Any:
        """Like ``shape``, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def device(self) -> Any:
        """The device, which follows the model; its type is known."""
        return _Device(self, "device")

    @property
    def ndim(self) -> Any:
        """Number of axes."""
        return len(self.shape)

    def dim(self) -> Any:
        """Number of axes."""
        return len(self.shape)

    def ndimension(self) -> Any:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> Any:
        """Number of values; depends on the batch unless no axis does."""
        count = 1
        for size in self.shape:
            count = count * size
        return count

    nelement = numel

    def __len__(self) -> int:
        first, second = self.tracer.values(self.node)[:2]
        try:
            lengths = {len(first), len(second)}
        except TypeError:
            lengths = set()
        if len(lengths) != 1:
            raise TraceError(f"the length of {self.node.name!r} depends on the batch size or is not known")
        return lengths.pop()

    def __index__(self) -> int:
        return int(self.tracer.number(self))

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))


class _Device(Attribute):
    """A device that is looked up when the graph runs, but whose type is known, as contexts want it."""

    @property
    def type(self) -> str:
        """Such as ``"cpu"`` or ``"cuda"``."""
        assert isinstance(self.tracer, ConstantShapeTracer)
        return self.tracer.device_type


class _Run:
    """Runs the nodes of a growing graph on tensors without values, for one batch size."""

    def __init__(self, root: nn.Module, example_input: Inputs, batch: int) -> None:
        self._root = root
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self._inputs = map_inputs(
                lambda tensor: torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device),
                example_input,
            )
        self._values: dict[fx.Node, Any] = {}
        self._last: fx.Node | None = None

    def value(self, node: fx.Node) -> Any:
        """What a node computes, ``_UNKNOWN`` if that cannot be said without values."""
        with torch.no_grad(), self._mode:
            while node not in self._values:
                following = next(iter(node.graph.nodes)) if self._last is None else self._last.next
                self._values[following] = self._compute(following)
                self._last = following
        return self._values[node]

    def _compute(self, node: fx.Node) -> Any:
        """Run one node."""
        inputs = [self._values[argument] for argument in node.all_input_nodes]
        if node.op == "placeholder":
            given = self._given(node)
            return given if given is not None else (node.args[0] if node.args else _UNKNOWN)
        if any(value is _UNKNOWN for value in inputs):
            return _UNKNOWN
        args = fx.node.map_arg(node.args, self._values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self._values.__getitem__)
        try:
            return self._call(node, args, kwargs)
        except Exception:
            return _UNKNOWN

    def _given(self, node: fx.Node) -> Tensor | None:
        """The input that a placeholder stands for, None if it is an argument with a default."""
        if isinstance(self._inputs, Tensor):
            return self._inputs if node.prev.op == "root" else None
        return self._inputs.get(str(node.target))

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Call what a node stands for."""
        if node.op == "get_attr":
            value: Any = self._root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            return type(module).forward(module, *args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
