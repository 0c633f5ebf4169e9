"""Networks made by hand, described as the supernet would describe them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from eqdeploy.network import LAYER_KINDS, ElasticSpace, LayerInfo, NetworkDescription, OpKind, TensorInfo

NON_NEGATIVE = frozenset({OpKind.RELU, OpKind.CLIP, OpKind.SIGMOID, OpKind.HARD_SIGMOID, OpKind.SOFTMAX})
SIGN_PRESERVING = frozenset(
    {
        OpKind.MAX_POOL,
        OpKind.AVERAGE_POOL,
        OpKind.GLOBAL_AVERAGE_POOL,
        OpKind.RESHAPE,
        OpKind.TRANSPOSE,
        OpKind.RESIZE,
        OpKind.CONCAT,
        OpKind.ADD,
        OpKind.MUL,
        OpKind.REQUANTIZE,
    }
)


@dataclass
class NetworkBuilder:
    """Adds one operation after the other; each call returns the name of the new tensor."""

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    layers: list[LayerInfo] = field(default_factory=list)

    def input(self, *shape: int) -> str:
        return self._add("x", OpKind.INPUT, (), shape or (4, 8, 8))

    def op(self, kind: OpKind, *inputs: str, name: str | None = None, shape: tuple[int, ...] | None = None) -> str:
        name = name or f"{kind}_{len(self.tensors)}"
        return self._add(name, kind, tuple(dict.fromkeys(inputs)), shape or self.tensors[inputs[0]].shape)

    def layer(
        self,
        name: str,
        source: str,
        *,
        kind: OpKind = OpKind.CONV,
        batch_norm: bool = True,
        groups: int = 1,
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """Add a layer and, if wanted, the BatchNorm that is folded into it; returns the last tensor."""
        output = self._add(name.replace(".", "_"), kind, (source,), shape or self.tensors[source].shape, layer=name)
        self.tensors[source] = replace(self.tensors[source], trained=True)
        self.layers.append(
            LayerInfo(
                name=name,
                op=kind,
                weight_shape=(4, 4, 3, 3),
                channel_axis=1 if kind is OpKind.CONV_TRANSPOSE else 0,
                groups=groups,
                input_tensor=source,
                output_tensor=output,
                batch_norm=f"{name}_bn" if batch_norm else None,
                macs=1,
            )
        )
        return self.op(OpKind.BATCH_NORM, output, name=f"{output}_bn") if batch_norm else output

    def conv_relu(self, name: str, source: str) -> str:
        return self.op(OpKind.RELU, self.layer(name, source), name=f"{name.replace('.', '_')}_relu")

    def build(self, *outputs: str, space: ElasticSpace | None = None) -> NetworkDescription:
        readers: dict[str, list[str]] = {name: [] for name in self.tensors}
        for tensor in self.tensors.values():
            for name in tensor.inputs:
                readers[name].append(tensor.name)
        return NetworkDescription(
            layers=tuple(self.layers),
            tensors=tuple(
                replace(tensor, readers=tuple(readers[tensor.name]), is_output=tensor.name in outputs)
                for tensor in self.tensors.values()
            ),
            space=space or ElasticSpace(),
        )

    def _add(
        self, name: str, kind: OpKind, inputs: tuple[str, ...], shape: tuple[int, ...], layer: str | None = None
    ) -> str:
        assert name not in self.tensors
        never_negative = kind in SIGN_PRESERVING and all(self.tensors[source].non_negative for source in inputs)
        self.tensors[name] = TensorInfo(
            name=name,
            shape=shape,
            op=kind,
            operation=f"torch.{kind}",
            inputs=inputs,
            readers=(),
            layer=layer if kind in LAYER_KINDS else None,
            non_negative=kind in NON_NEGATIVE or never_negative,
        )
        return name


def residual_network(space: ElasticSpace | None = None) -> NetworkDescription:
    """A stem with max pool, an identity block, a block with downsampling, pool, flatten, linear."""
    net = NetworkBuilder()
    stem = net.conv_relu("stem", net.input())
    pooled = net.op(OpKind.MAX_POOL, stem, name="pool", shape=(4, 4, 4))
    main = net.layer("a.conv2", net.conv_relu("a.conv1", pooled))
    block = net.op(OpKind.RELU, net.op(OpKind.ADD, main, pooled, name="add_a"), name="a_relu")
    main = net.layer("b.conv2", net.conv_relu("b.conv1", block))
    skip = net.layer("b.down", block)
    block = net.op(OpKind.RELU, net.op(OpKind.ADD, main, skip, name="add_b"), name="b_relu")
    mean = net.op(OpKind.GLOBAL_AVERAGE_POOL, block, name="gap", shape=(4, 1, 1))
    flat = net.op(OpKind.RESHAPE, mean, name="flat", shape=(4,))
    logits = net.layer("fc", flat, kind=OpKind.LINEAR, batch_norm=False, shape=(10,))
    return net.build(logits, space=space)


def squeeze_excite_network() -> NetworkDescription:
    """SiLU (sigmoid and product) and a squeeze-and-excite gate, as in EfficientNet."""
    net = NetworkBuilder()
    stem = net.layer("stem", net.input())
    silu = net.op(OpKind.MUL, stem, net.op(OpKind.SIGMOID, stem, name="gate"), name="silu")
    mean = net.op(OpKind.GLOBAL_AVERAGE_POOL, silu, name="mean", shape=(4, 1, 1))
    reduce = net.op(OpKind.RELU, net.layer("se.fc1", mean, batch_norm=False), name="se_relu")
    expand = net.op(OpKind.SIGMOID, net.layer("se.fc2", reduce, batch_norm=False), name="se_gate")
    scaled = net.op(OpKind.MUL, silu, expand, name="scaled", shape=(4, 8, 8))
    project = net.layer("project", scaled)
    return net.build(net.layer("head", project, batch_norm=False))


def concat_network(space: ElasticSpace | None = None) -> NetworkDescription:
    """Two branches that are concatenated, one of them also read by a convolution of its own."""
    net = NetworkBuilder()
    stem = net.conv_relu("stem", net.input())
    left = net.conv_relu("left", stem)
    right = net.layer("right", left)  # no ReLU: may be negative
    joined = net.op(OpKind.CONCAT, left, right, stem, name="joined", shape=(12, 8, 8))
    return net.build(net.layer("head", joined, batch_norm=False), space=space)
