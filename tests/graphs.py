"""Random convolutional graphs: whatever exporters write, in any order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Grows a graph step by step; ``live`` are feature maps (name, channels, size) that may still be used."""

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.opset = opset
        self.live: list[tuple[str, int, int]] = [("image", 3, 8)]

    # bricks -----------------------------------------------------------------------------------------------------------
    def stored(self, *shape: int, positive: bool = False) -> str:
        values = self.rng.standard_normal(shape).astype(np.float32) * max(1, int(np.prod(shape[1:]))) ** -0.5
        return self.value(np.abs(values) + 0.5 if positive else values)

    def value(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        values = values.astype(np.float32) if values.dtype.kind == "f" else values
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def ints(self, *values: int) -> str:
        return self.value(np.array(values, np.int64))

    def op(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: object) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"{kind}_{len(self.nodes)}", **attributes))
        return names[0]

    def conv(self, x: str, i: int, o: int, kernel: int = 1, group: int = 1) -> str:
        pads = [kernel // 2] * 4
        inputs = [x, self.stored(o, i // group, kernel, kernel), self.stored(o)]
        return self.op("Conv", inputs, kernel_shape=[kernel] * 2, pads=pads, group=group)

    def pick(self) -> tuple[str, int, int]:
        return self.live[self.rng.integers(max(0, len(self.live) - 3), len(self.live))]

    def wide(self, least: int = 8) -> tuple[str, int, int]:
        """A feature map of 8, 12 or 16 channels, made by a convolution."""
        x, channels, size = self.pick()
        out = int(self.rng.choice([8, 12, 16]))
        return self.conv(x, channels, max(out, least), int(self.rng.choice([1, 3]))), max(out, least), size

    # steps ------------------------------------------------------------------------------------------------------------
    def plain(self) -> None:
        self.live.append(self.wide())

    def activation(self) -> None:
        x, c, s = self.wide()
        kind = str(self.rng.choice(["Relu", "Sigmoid", "Tanh", "Softplus", "LeakyRelu", "HardSwish"]))
        self.live.append((self.op(kind, [x]), c, s))

    def prelu(self) -> None:
        x, c, s = self.wide()
        self.live.append((self.op("PRelu", [x, self.stored(c, 1, 1)]), c, s))

    def batch_norm(self) -> None:
        x, c, s = self.wide()
        inputs = [x, self.stored(c), self.stored(c), self.stored(c), self.stored(c, positive=True)]
        self.live.append((self.op("BatchNormalization", inputs), c, s))

    def depthwise(self) -> None:
        x, c, s = self.wide()
        self.live.append((self.op("Relu", [self.conv(x, c, c, 3, group=c)]), c, s))

    def grouped(self) -> None:
        x, c, s = self.wide()
        group = int(self.rng.choice([2, 4]))
        out = c * int(self.rng.choice([1, 2]))
        self.live.append((self.conv(x, c, out, 3, group=group), out, s))

    def residual(self) -> None:
        x, c, s = self.pick()
        y = self.op("Relu", [self.conv(x, c, 12, 3)])
        self.live.append((self.op(str(self.rng.choice(["Add", "Mul"])), [self.conv(y, 12, c), x]), c, s))

    def concat(self) -> None:
        x, c, s = self.pick()
        same = [t for t in self.live if t[2] == s]
        y, d, _ = same[self.rng.integers(len(same))]
        self.live.append((self.op("Concat", [x, self.conv(y, d, 6), x], axis=1), 2 * c + 6, s))

    def split(self) -> None:
        x, c, s = self.wide()
        first = self.op("Split", [x, self.ints(4, c - 4)], 2, axis=1)
        self.live += [(first, 4, s), (first[:-1] + "1", c - 4, s)]

    def cut(self) -> None:
        x, c, s = self.wide()
        step = int(self.rng.choice([1, 2]))
        picked = self.op("Slice", [x, self.ints(2), self.ints(c), self.ints(1), self.ints(step)])
        self.live.append((picked, len(range(2, c, step)), s))

    def gather(self) -> None:
        x, c, s = self.wide()
        order = self.rng.permutation(c)[: c - 2]
        self.live.append((self.op("Gather", [x, self.ints(*order.tolist())], axis=1), c - 2, s))

    def gate(self) -> None:
        x, c, s = self.wide()
        y = self.conv(self.op("GlobalAveragePool", [x]), c, 4)
        y = self.op("Sigmoid", [self.conv(self.op("Relu", [y]), 4, c)])
        self.live.append((self.op("Mul", [x, y]), c, s))

    def shuffle(self) -> None:
        x, c, s = self.wide()
        g = int(self.rng.choice([2, 4]))
        y = self.op("Reshape", [x, self.ints(0, g, c // g, s, s)])
        y = self.op("Transpose", [y], perm=[0, 2, 1, 3, 4])
        self.live.append((self.op("Reshape", [y, self.ints(0, c, s, s)]), c, s))

    def pad(self) -> None:
        x, c, s = self.wide()
        y = self.op("Pad", [x, self.ints(0, 2, 0, 0, 0, 3, 0, 0)])
        self.live.append((self.op("Add", [y, self.conv(x, c, c + 5)]), c + 5, s))

    def pixel_shuffle(self) -> None:
        x, c, s = self.wide()
        mode = str(self.rng.choice(["CRD", "DCR"]))
        y = self.op("DepthToSpace", [x], blocksize=2, mode=mode)
        y = self.op("MaxPool", [y], kernel_shape=[2, 2], strides=[2, 2])
        self.live.append((y, c // 4, s))

    def transposed(self) -> None:
        x, c, s = self.wide()
        inputs = [x, self.stored(c, 6, 3, 3), self.stored(6)]
        self.live.append((self.op("ConvTranspose", inputs, kernel_shape=[3, 3], pads=[1] * 4), 6, s))

    def group_norm(self) -> None:
        x, c, s = self.wide()
        y = self.op("Reshape", [x, self.ints(0, 4, -1)])
        y = self.op("InstanceNormalization", [y, self.stored(4), self.stored(4)])
        y = self.op("Reshape", [y, self.op("Shape", [x])])
        self.live.append((self.op("Mul", [y, self.stored(c, 1, 1)]), c, s))

    def channels_last(self) -> None:
        x, c, s = self.wide()
        y = self.op("Transpose", [x], perm=[0, 2, 3, 1])
        y = self.op("Add", [self.op("MatMul", [y, self.stored(c, 10)]), self.stored(10)])
        self.live.append((self.op("Transpose", [y], perm=[0, 3, 1, 2]), 10, s))

    def pool(self) -> None:
        x, c, s = self.wide()
        self.live.append((self.op("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4), c, s))

    def shared(self) -> None:
        x, c, s = self.wide()
        weight, bias = self.stored(c, c, 3, 3), self.stored(c)
        for _ in range(2):
            x = self.op("Relu", [self.op("Conv", [x, weight, bias], kernel_shape=[3, 3], pads=[1] * 4)])
        self.live.append((x, c, s))

    def merged(self) -> None:
        """Layers that share nothing but a bias and a scale, which an exporter found equal."""
        x, c, s = self.wide()
        bias, scale = self.stored(c), self.stored(c, 1, 1)
        for kernel in (1, 3, 1):
            inputs = [x, self.stored(c, c, kernel, kernel), bias]
            x = self.op("Conv", inputs, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
            x = self.op("Tanh", [self.op("Mul", [x, scale])])
        self.live.append((x, c, s))

    # end --------------------------------------------------------------------------------------------------------------
    def finish(self, head: str) -> onnx.ModelProto:
        """Close the graph with a classifier on all live maps, or hand out the last map itself."""
        tails = self.live[-2:]
        outputs = []
        for k, (x, c, s) in enumerate(tails):
            if head == "flatten":
                flat = self.op("Flatten", [x])
                y = self.op("Gemm", [flat, self.stored(5, c * s * s), self.stored(5)], transB=1)
            elif head == "pool":
                flat = self.op("Reshape", [self.op("ReduceMean", [x], axes=[2, 3]), self.ints(-1, c)])
                y = self.op("Gemm", [flat, self.stored(c, 5), self.stored(5)], alpha=0.5)
            else:
                y = x
            self.op("Identity", [y])
            self.nodes[-1].output[0] = f"out{k}"
            shape = ["batch", c, s, s] if head == "open" else ["batch", 5]
            outputs.append(helper.make_tensor_value_info(f"out{k}", TensorProto.FLOAT, shape))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
        graph = helper.make_graph(self.nodes, "random", [image], outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


# fmt: off
STEPS: dict[str, Callable[[Builder], None]] = {
    step.__name__: step
    for step in (
        Builder.plain, Builder.activation, Builder.prelu, Builder.batch_norm, Builder.depthwise, Builder.grouped,
        Builder.residual, Builder.concat, Builder.split, Builder.cut, Builder.gather, Builder.gate, Builder.shuffle,
        Builder.pad, Builder.pixel_shuffle, Builder.transposed, Builder.group_norm, Builder.channels_last, Builder.pool,
        Builder.shared, Builder.merged,
    )
}
# fmt: on


def build(steps: list[str], head: str, seed: int) -> onnx.ModelProto:
    """A graph of the given steps."""
    builder = Builder(seed)
    for step in steps:
        STEPS[step](builder)
    return builder.finish(head)
