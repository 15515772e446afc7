"""Small nets around one operator: a producer of channels, the operator under test, and whatever reads its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.runtime import Session

Operand = str | float | int | list[int] | np.ndarray | None
Result = str | Sequence[str]
CHANNELS = 8
IR_VERSION = 10

STARTS = {  # shape of the graph input, and of the weight that makes eight channels of it
    "image": ((2, 3, 4, 6), (CHANNELS, 3, 3, 3)),
    "line": ((2, 3, 6), (CHANNELS, 3, 3)),
    "volume": ((2, 3, 2, 4, 3), (CHANNELS, 3, 1, 1, 1)),
    "rows": ((5, 7), (7, CHANNELS)),
    "tokens": ((2, 5, 7), (7, CHANNELS)),
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    ``build(net, x)`` writes the operator under test on top of ``x``, eight channels made by the producer ``start``, and
    returns the tensor (or tensors) that the consumer ``end`` reads. ``expect``: ``"cut"``, some channels can be pruned,
    or ``"frozen"``, none can and the reason names a node of type ``blame``. ``zero``: whether a removed channel is zero
    behind the operator, so that it may be summed over (None: not asked). ``reference``: onnxruntime has no kernel, ONNX's
    own evaluator runs the case. ``dynamic``: the size of the batch is left open. ``domain``: of the operator.
    """

    op: str
    opset: int
    note: str
    build: Callable[[Net, str], Result]
    expect: str = "cut"
    start: str = "image"
    end: str = "auto"
    zero: bool | None = None
    blame: str = ""
    reference: bool = False
    dynamic: bool = False
    domain: str = ""

    @property
    def key(self) -> str:
        """The rule under test."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def name(self) -> str:
        """What pytest prints."""
        return "-".join(filter(None, (self.key, str(self.opset), self.note.replace(" ", "_"))))

    def net(self, end: str = "") -> Net:
        """The finished net; ``end`` replaces the row's own."""
        net = Net(self.opset, reference=self.reference, dynamic=self.dynamic)
        results = self.build(net, net.producer(self.start))
        for result in (results,) if isinstance(results, str) else results:
            net.consume(result, end or self.end, self.start)
        return net


def row(op: str, opsets: int | Sequence[int], note: str, build: Callable[[Net, str], Result], **options: Any) -> Iterator[Case]:
    """The same row for one or several opsets."""
    for opset in (opsets,) if isinstance(opsets, int) else opsets:
        yield Case(op, opset, note, build, **options)


def frozen(
    op: str, opsets: int | Sequence[int], note: str, build: Callable[[Net, str], Result], **options: Any
) -> Iterator[Case]:
    """A row whose channels can't be pruned."""
    for case in row(op, opsets, note, build, **options):
        yield replace(case, expect="frozen", blame=case.blame or op)


class Net:
    """Grows node by node. Any operator is a method: ``net.Clip(x, 0.0, 6.0)``, ``net.Concat(x, y, axis=1)``.

    Operands are names of tensors, or values that become initializers (Python numbers and lists of ints: float32 and
    int64); None omits one. All weights and biases are well away from zero, so that a channel that is wrongly kept, dropped
    or swapped shows.
    """

    def __init__(self, opset: int, *, reference: bool = False, dynamic: bool = False) -> None:
        self.opset = opset
        self.reference = reference
        self.dynamic = dynamic
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.start = ""

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op[0].isupper():
            raise AttributeError(op)

        def write(*operands: Operand, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
            place = len(self.nodes)
            names = [f"{op.lower()}{place}{'_' * (outputs > 1)}{k if outputs > 1 else ''}" for k in range(outputs)]
            inputs = [self._operand(o) for o in operands]
            self.nodes.append(helper.make_node(op, inputs, names, f"{op}_{place}", domain=domain, **attributes))
            return names if outputs > 1 else names[0]

        return write

    # what goes in -----------------------------------------------------------------------------------------------------
    def w(self, *shape: int) -> str:
        """A weight: magnitudes 0.3 to 1, either sign."""
        return self.store(self.rng.uniform(0.3, 1, shape).astype(np.float32) * self.rng.choice(np.float32([-1, 1]), shape))

    def positive(self, *shape: int) -> str:
        """A weight of 0.3 to 1."""
        return self.store(self.rng.uniform(0.3, 1, shape).astype(np.float32))

    def int8(self, *shape: int, dtype: Any = np.int8) -> str:
        """A quantised weight, no element of which is zero."""
        return self.store(self.rng.integers(1, 60, shape).astype(dtype))

    def store(self, values: np.ndarray) -> str:
        """An initializer."""
        name = f"w{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def constant(self, values: np.ndarray) -> str:
        """A Constant node."""
        return self.Constant(value=numpy_helper.from_array(values))

    def input(self, values: np.ndarray) -> str:
        """A graph input that will be fed these values."""
        name = f"x{len(self.inputs)}"
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, self._declared(values.shape)))
        self.feeds[name] = values
        return name

    def _declared(self, shape: tuple[int, ...]) -> list[int | str]:
        return ["batch", *shape[1:]] if self.dynamic and shape else list(shape)

    def randn(self, *shape: int) -> np.ndarray:
        """Standard normal float32."""
        return self.rng.standard_normal(shape).astype(np.float32)

    def _operand(self, operand: Operand) -> str:
        if operand is None or isinstance(operand, str):
            return operand or ""
        if isinstance(operand, np.ndarray):
            return self.store(operand)
        return self.store(np.array(operand, np.float32 if isinstance(operand, float) else np.int64))

    # what comes before and after --------------------------------------------------------------------------------------
    def producer(self, start: str) -> str:
        """Eight channels, from the graph's first input."""
        shape, weight = STARTS[start]
        source = self.input(self.randn(*shape)) if not self.inputs else self.inputs[0].name
        self.start = start
        if start == "rows":
            return self.Gemm(source, self.w(*weight), self.w(CHANNELS))
        if start == "tokens":
            return self.Add(self.MatMul(source, self.w(*weight)), self.w(CHANNELS))
        return self.Conv(source, self.w(*weight), self.w(CHANNELS), pads=[k // 2 for k in weight[2:]] * 2)

    def another(self) -> str:
        """A second producer of eight channels on the same input."""
        return self.producer(self.start)

    def consume(self, result: str, end: str, start: str) -> None:
        """Read a tensor: ``conv`` over axis 1, ``dense`` over the last, ``sum`` over that axis, ``none``: a graph output."""
        shape, dtype = self.probe(result)
        if end != "none" and dtype != np.float32:
            result = self.Cast(result, to=TensorProto.FLOAT)
        images = start in ("image", "line", "volume") and len(shape) > 2
        if end == "auto":
            end = "conv" if images else "dense"
        if end == "sum":
            axis = 1 if images else len(shape) - 1
            new = self.opset >= 13
            result = self.ReduceSum(result, [axis]) if new else self.ReduceSum(result, axes=[axis])
        elif end == "conv":
            result = self.Conv(result, self.w(3, shape[1], *[1] * (len(shape) - 2)), self.w(3))
        elif end == "dense" and len(shape) == 2:
            result = self.Gemm(result, self.w(3, shape[1]), self.w(3), transB=1)
        elif end == "dense":
            result = self.Add(self.MatMul(result, self.w(shape[-1], 3)), self.w(3))
        self.outputs.append(result)

    # what comes out ---------------------------------------------------------------------------------------------------
    def probe(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of a tensor, from a run."""
        value = run(self._model([name], typed=False), self.feeds, reference=self.reference)[0]
        return value.shape, value.dtype

    def model(self) -> ModelProto:
        """The finished, checked model."""
        model = self._model(self.outputs, typed=True)
        check_model(model)
        return model

    def _model(self, outputs: Sequence[str], *, typed: bool) -> ModelProto:
        kinds = [self.probe(o) if typed else ((), None) for o in outputs]
        ports = [
            helper.make_tensor_value_info(o, helper.np_dtype_to_tensor_dtype(k), s)
            if k is not None
            else onnx.ValueInfoProto(name=o)
            for o, (s, k) in zip(outputs, kinds, strict=True)
        ]
        graph = helper.make_graph(self.nodes, "case", self.inputs, ports, self.stored)
        domains = {"": self.opset} | {node.domain: 1 for node in self.nodes if node.domain}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def check_model(model: ModelProto) -> None:
    """What ONNX's checker says; PyTorch writes deprecated GroupNormalization, onnxruntime an operator that is not in ONNX."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        if not any(known in str(error) for known in ("GroupNormalization is deprecated", "registered for Simplified")):
            raise


def run(model: ModelProto, feeds: dict[str, np.ndarray], *, reference: bool = False) -> list[np.ndarray]:
    """Outputs, in onnxruntime or in ONNX's own evaluator."""
    if not reference:
        return Session(model).run(feeds)
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, feeds)
