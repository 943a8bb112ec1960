"""From a step in plain PyTorch to our graph, and from the graph back to PyTorch.

The step is run once on small tensors, under a dispatch mode that sees each ATen operator and looks up its
row. An operator that has no row is refused where it happens, so the error quotes the author's own line.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recollect.errors import CellError
from recollect.graph import ops
from recollect.graph.graph import Builder, Expr, Graph

# Two unlike primes: a step that mixes up batch and units, or reduces over one of them, shows.
BATCH, UNITS = 3, 5

# What torch says where a step asks a tensor for its numbers.
_CONVERSIONS = ("Boolean value of Tensor", "converted to Python scalars", "converted to Scalar", "tensor to numpy")

_PRODUCTS = (
    "t",
    "transpose",
    "permute",
    "numpy_T",
    "mm",
    "matmul",
    "bmm",
    "addmm",
    "linear",
    "dot",
    "mv",
    "einsum",
    "baddbmm",
)
_ACROSS_UNITS = (
    "sum",
    "mean",
    "softmax",
    "norm",
    "var",
    "std",
    "cumsum",
    "logsumexp",
    "amax",
    "amin",
    "max",
    "min",
    "any",
    "all",
    "prod",
)


def trace(function: Callable[..., Any], arguments: Mapping[str, Any], leaves: Mapping[str, torch.Tensor],
          states: tuple[str, ...]) -> Graph:  # fmt: skip
    """Run ``function(**arguments)`` once and return the graph of what it computed.

    Args:
        function: the step.
        arguments: what it is called with; holds the tensors of ``leaves``.
        leaves: leaf name -> a tensor [BATCH, UNITS] or [UNITS].
        states: the names of the states that the step returns, in order.

    Raises:
        CellError: the step does something that cannot be derived; quotes the line.
    """
    recorder = _Recorder(function)
    for name, tensor in leaves.items():
        recorder.bind(tensor, recorder.builder.leaf(name))
    variables: dict[str, Any] = {}
    try:
        with torch.no_grad(), recorder, recorder.watch(function, variables):
            returned = function(*arguments.values())
    except CellError:
        raise
    except Exception as error:
        if any(text in str(error) for text in _CONVERSIONS):
            raise recorder.not_a_python_value(recorder.quote(error.__traceback__)) from error
        raise CellError(
            f"the step of {recorder.title} failed",
            given=f"{error}{recorder.quote(error.__traceback__)}",
            expected="a step that runs on tensors [B, H]",
        ) from error
    returned = returned if isinstance(returned, tuple | list) else (returned,)
    if len(returned) != len(states):
        raise CellError(
            f"{recorder.title} returns {len(returned)} value(s), but declares {len(states)} state(s)",
            given=f"{len(returned)} returned{recorder.quote()}",
            expected="the new value of each state, in order: " + ", ".join(states),
            remedy=f"end the step with `return {', '.join(states)}`, or declare the states that it has",
        )
    outputs: dict[str, Expr] = {}
    for state, value in zip(states, returned, strict=True):
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            raise CellError(
                f"{recorder.title} returns state {state!r} as {str(value.dtype).removeprefix('torch.')}",
                given=f"{shape}{recorder.quote()}",
                expected="[B, H], real numbers",
                remedy="choose numbers with torch.where(condition, 1.0, 0.0)",
            )
        if shape != (BATCH, UNITS):
            named = {(UNITS,): "[H]", (): "[] (one number)"}.get(shape, str(shape))  # pyright: ignore[reportArgumentType]
            raise CellError(
                f"{recorder.title} returns state {state!r} in the wrong shape",
                given=f"{named}{recorder.quote()}",
                expected="[B, H], one number per row and unit",
                remedy="combine it with inp, rec or prev, which are [B, H]",
            )
        outputs[state] = recorder.expr(value)
    names = {
        name: recorder.exprs[id(value)]
        for name, value in variables.items()
        if isinstance(value, torch.Tensor) and id(value) in recorder.exprs
    }
    return recorder.builder.build(outputs, names)


class _Recorder(TorchDispatchMode):
    """Builds the graph while the step runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import all of torch._dynamo at the first operator: seconds, for a step nobody compiles.
        return False

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.builder = Builder()
        self.exprs: dict[int, Expr] = {}
        self.title = f"cell {function.__name__!r}"
        self.code: CodeType | None = getattr(function, "__code__", None)
        self._returned_at: int | None = None
        self._keep: list[torch.Tensor] = []

    def bind(self, tensor: torch.Tensor, expr: Expr) -> None:
        if tensor.dtype == torch.bool and not expr.boolean:  # in torch the sum of two conditions is one
            expr = self.builder.apply("ne", expr, 0.0)
        self.exprs[id(tensor)] = expr
        self._keep.append(tensor)  # or its id could be given to another tensor

    def expr(self, tensor: torch.Tensor) -> Expr:
        known = self.exprs.get(id(tensor))
        if known is not None:
            return known
        if tensor.dim() == 0 and not tensor.requires_grad:
            return self.builder.const(float(tensor.item()))
        raise CellError(
            f"{self.title} uses a tensor that is not one of its arguments",
            given=f"a tensor of shape {tuple(tensor.shape)}{self.quote()}",
            expected="values from inp, rec, prev and vec, and plain numbers",
            remedy='declare a parameter per unit with vectors="name" and read it as vec.name',
        )

    def quote(self, failed: TracebackType | None = None) -> str:
        """The author's line that is running, or that failed, as a quotation."""
        stack = (
            [(entry.tb_frame, entry.tb_lineno) for entry in _chain(failed, "tb_next")]
            if failed
            else [(frame, frame.f_lineno) for frame in _chain(sys._getframe(), "f_back")]
        )
        number = next((number for frame, number in stack if frame.f_code is self.code), self._returned_at)
        if number is None or self.code is None:
            return ""
        line = linecache.getline(self.code.co_filename, number).strip()
        return f" in line {number}: `{line}`" if line else f" in line {number}"

    @contextmanager
    def watch(self, function: Callable[..., Any], variables: dict[str, Any]) -> Iterator[None]:
        """Collect what the step calls its values, so that its equations can be written in the author's words."""
        before = sys.getprofile()

        def on_event(frame: FrameType, event: str, arg: Any) -> None:
            if event == "return" and frame.f_code is self.code:
                variables.update(frame.f_locals)
                self._returned_at = frame.f_lineno

        sys.setprofile(on_event)
        try:
            yield
        finally:
            sys.setprofile(before)

    def not_a_python_value(self, where: str) -> CellError:
        return CellError(
            f"{self.title} turns a tensor into a Python value (an `if`, `while`, `float()`, `.item()` or `.numpy()`)",
            given=where.removeprefix(" in ") or "a tensor in a condition",
            expected="one step that is the same for every row and unit",
            remedy="choose by value with torch.where(condition, a, b)",
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        short = name.split(".")[1]
        if func._schema.is_mutable:
            raise CellError(
                f"{self.title} changes a tensor in place",
                given=f"{short}{self.quote()}",
                expected="new values, as in `c = f * c` rather than `c *= f`",
                remedy=f"use {short.rstrip('_')} without the underscore",
            )
        if short == "_local_scalar_dense":
            raise self.not_a_python_value(self.quote())
        if name == "aten.lift_fresh.default":  # torch.tensor(2.0)
            return func(*args, **kwargs)
        if name == "aten.scalar_tensor.default":  # the number in torch.where(condition, x, 0.0)
            result = func(*args, **kwargs)
            self.bind(result, self.builder.const(float(args[0])))
            return result
        if name == "aten._to_copy.default":
            expr = self.expr(args[0])
            result = func(*args, **kwargs)
            if args[0].is_floating_point() and result.is_floating_point() and args[0].dtype != result.dtype:
                self._refuse(short, "a cast to another precision: the layer's dtype is that of the whole step")
            if not result.is_floating_point() and result.dtype != torch.bool:
                self._refuse(short, "a cast to another kind of number")
            self.bind(result, self.builder.apply("where", expr, 1.0, 0.0) if expr.boolean else expr)
            return result
        row = ops.BY_ATEN.get(name)
        if row is None:
            self._refuse(short)
        exprs = [self.expr(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        if name == "aten.log_sigmoid_forward.default":
            # torch runs it in its thread pool, however small it is. Importing the cells would start the pool, or
            # wait for ever in a child that was forked from a process with one. Here only the shape is of use.
            result: Any = (torch.zeros_like(args[0]), torch.zeros_like(args[0]))
        else:
            result = func(*args, **kwargs)
        try:
            if isinstance(row, ops.Op):
                self.bind(result, self.builder.apply(row.name, *exprs))
            else:
                made = row.expand(*exprs, **kwargs)  # pyright: ignore[reportOptionalMemberAccess]
                for tensor, expr in zip(*((result, made) if isinstance(made, tuple) else ((result,), (made,))),
                                        strict=True):  # fmt: skip
                    if expr is not None:
                        self.bind(tensor, expr)
        except LookupError as error:
            self._refuse(short, str(error.args[0]))
        return result

    def _refuse(self, op: str, hint: str | None = None) -> NoReturn:
        if hint:
            raise CellError(
                f"{self.title} uses {op!r} in a way that no row covers", given=f"{op}{self.quote()}", remedy=hint
            )
        if op in _PRODUCTS:
            remedy = (
                "the layer multiplies with W_ih and W_hh before the step; a product of a gated state with a matrix "
                "(as in a GRU that resets before the product) is not a step: use `r * rec.n`"
            )
        elif op.endswith(("layer_norm", "rms_norm", "group_norm", "batch_norm")):
            remedy = (
                "normalisation inside a step is not built yet, for it needs all units of a row at once: put "
                "torch.nn.LayerNorm on the input of the layer or on its output, as between stacked layers"
            )
        elif op.removeprefix("_").split("_")[-1] in _ACROSS_UNITS:
            remedy = "a step is elementwise: it may not reduce or normalise across units or rows"
        else:
            remedy = None
        raise CellError(
            f"{self.title} uses {op!r}, which has no row in the table of operations",
            given=f"{op}{self.quote()}",
            expected=None if remedy else ops.listing(),  # the list helps only who could have written it otherwise
            remedy=remedy or "write it with the operations listed",
        )


def _chain(first: Any, link: str) -> Iterator[Any]:
    while first is not None:
        yield first
        first = getattr(first, link)


class TorchTarget:
    """Prints a graph into PyTorch: runs a cell that came from a file.

    What is not defined here is torch's function of that name.

    Args:
        dtype: of what is computed from constants alone.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self._dtype = dtype

    def __getattr__(self, name: str) -> Callable[..., torch.Tensor]:
        function = getattr(torch, name)
        # A graph may apply an operation to a constant.
        return lambda *args: function(*(self.tensor(arg) for arg in args))

    def const(self, value: float) -> float:
        return value

    def tensor(self, x: torch.Tensor | float) -> torch.Tensor:
        return x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=self._dtype)

    def power(self, x: torch.Tensor | float, exponent: float) -> torch.Tensor:
        return torch.pow(self.tensor(x), exponent)

    def equal(self, x: Any, y: Any) -> Any:
        return x == y

    def not_equal(self, x: Any, y: Any) -> Any:
        return x != y

    def where(self, condition: torch.Tensor | bool, x: Any, y: Any) -> Any:
        return torch.where(torch.as_tensor(condition), self.tensor(x), self.tensor(y))

    def softplus(self, x: torch.Tensor | float) -> torch.Tensor:
        return torch.nn.functional.softplus(self.tensor(x))
