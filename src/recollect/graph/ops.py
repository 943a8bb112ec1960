"""The operations a step may use: one row each.

A row says which ATen operators it is traced from, what its partial derivatives are (in these same
operations), how it is printed into any target, and how it is written on paper. Adding an operation is
adding a row; the tests discover it and compare its value and derivative with torch.

Rows are of two kinds. A *primitive* (`Op`) stays in the graph. A *derived* row (`Derived`) is written
in terms of other rows when it is traced, so it needs no derivative and no printing of its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Latex = Callable[..., str]


class Target(Protocol):
    """What a target offers so that every row can be printed into it.

    Values of the target support ``+ - * /``, negation and ``< <= > >=``. ``x`` is a value, ``c`` a
    condition (the result of a comparison).
    """

    def const(self, value: float) -> Any: ...
    def exp(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def sigmoid(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def softplus(self, x: Any) -> Any: ...
    def sin(self, x: Any) -> Any: ...
    def cos(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def relu(self, x: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def equal(self, x: Any, y: Any) -> Any: ...
    def not_equal(self, x: Any, y: Any) -> Any: ...
    def where(self, c: Any, x: Any, y: Any) -> Any: ...
    def detach(self, x: Any) -> Any: ...


@dataclass(frozen=True)
class Op:
    """A primitive operation.

    Attributes:
        name: its name in the graph.
        aten: the ATen operators it is traced from, or None where only derivatives use it.
        arity: how many values it takes.
        emit: ``emit(target, *args[, number])`` prints it into a target.
        partials: ``partials(out, *args[, number])`` -> one partial derivative per argument, None for 0.
        latex: ``latex(*args[, number])`` from the arguments' LaTeX, already in brackets where needed.
        binds: how strongly its LaTeX holds together: -1 comparisons, 0 sums, 1 products, 2 quotients,
            3 powers, 4 atoms.
        costly: worth saving for the backward pass rather than computing again.
        takes_number: it has one number that is fixed when the cell is written.
        boolean: its value is a condition.
        boolean_args: which arguments are conditions.
        commutes: its two arguments may be swapped.
    """

    name: str
    aten: tuple[str, ...]
    arity: int
    emit: Callable[..., Any]
    partials: Callable[..., tuple[Any, ...]]
    latex: Latex
    binds: int = 4
    costly: bool = False
    takes_number: bool = False
    boolean: bool = False
    boolean_args: tuple[int, ...] = ()
    commutes: bool = False


@dataclass(frozen=True)
class Derived:
    """An operation written in terms of others: ``expand(*args, **kwargs)`` as ATen passes them."""

    name: str
    aten: tuple[str, ...]
    expand: Callable[..., Any]


def _apply(op: str, *args: Any, attr: float | None = None) -> Any:
    builder = next(arg.builder for arg in args if hasattr(arg, "builder"))
    return builder.apply(op, *args, attr=attr)


def _where(condition: Any, x: Any, y: Any) -> Any:
    return _apply("where", condition, x, y)


def _minimum_partials(out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    # torch shares the gradient of a tie in halves.
    tie = _where(_apply("eq", x, y), 0.5, 0.0)
    return _where(_apply("lt", x, y), 1.0, tie), _where(_apply("lt", y, x), 1.0, tie)


def _compare(name: str, aten: str, emit: Callable[..., Any], sign: str) -> Op:
    names = tuple(f"aten.{aten}.{overload}" for overload in ("Tensor", "Scalar"))
    return Op(
        name,
        names,
        2,
        emit,
        lambda out, x, y: (None, None),
        lambda x, y: rf"{x} {sign} {y}",
        binds=-1,
        boolean=True,
        commutes=name in ("eq", "ne"),
    )


def _power_partial(out: Any, x: Any, exponent: float) -> tuple[Any]:
    return (exponent * power(x, exponent - 1.0),)


def power(x: Any, exponent: float) -> Any:
    """x to a constant power; the usual exponents become products, quotients and roots."""
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return x * x
    if exponent == 3.0:
        return x * x * x
    if exponent == -1.0:
        return 1.0 / x
    if exponent == 0.5:
        return _apply("sqrt", x)
    if exponent == 0.0:
        return x.builder.const(1.0)
    return _apply("power", x, attr=float(exponent))


def _fn(name: str) -> Latex:
    return lambda x: rf"\operatorname{{{name}}}\left({x}\right)"


_PRIMITIVES = (
    Op("add", (), 2, lambda m, x, y: operator.add(x, y), lambda out, x, y: (1.0, 1.0),
       lambda x, y: f"{x} + {y}", binds=0, commutes=True),
    Op("sub", (), 2, lambda m, x, y: operator.sub(x, y), lambda out, x, y: (1.0, -1.0),
       lambda x, y: f"{x} - {y}", binds=0),
    Op("mul", ("aten.mul.Tensor", "aten.mul.Scalar"), 2, lambda m, x, y: operator.mul(x, y),
       lambda out, x, y: (y, x), lambda x, y: rf"{x} \, {y}", binds=1, commutes=True),
    Op("div", ("aten.div.Tensor", "aten.div.Scalar"), 2, lambda m, x, y: operator.truediv(x, y),
       lambda out, x, y: (1.0 / y, -(out / y)), lambda x, y: rf"\frac{{{x}}}{{{y}}}", binds=2, costly=True),
    Op("neg", ("aten.neg.default",), 1, lambda m, x: operator.neg(x), lambda out, x: (-1.0,),
       lambda x: f"-{x}", binds=0),
    Op("abs", ("aten.abs.default",), 1, lambda m, x: m.abs(x),
       lambda out, x: (_where(_apply("gt", x, 0.0), 1.0, _where(_apply("lt", x, 0.0), -1.0, 0.0)),),
       lambda x: rf"\left|{x}\right|"),
    Op("exp", ("aten.exp.default",), 1, lambda m, x: m.exp(x), lambda out, x: (out,),
       lambda x: rf"e^{{{x}}}", binds=3, costly=True),
    Op("log", ("aten.log.default",), 1, lambda m, x: m.log(x), lambda out, x: (1.0 / x,),
       lambda x: rf"\ln\left({x}\right)", costly=True),
    Op("sqrt", ("aten.sqrt.default",), 1, lambda m, x: m.sqrt(x), lambda out, x: (0.5 / out,),
       lambda x: rf"\sqrt{{{x}}}", costly=True),
    Op("power", (), 1, lambda m, x, exponent: m.power(x, exponent), _power_partial,
       lambda x, exponent: rf"{{{x}}}^{{{exponent:g}}}", binds=3, costly=True, takes_number=True),
    Op("sigmoid", ("aten.sigmoid.default",), 1, lambda m, x: m.sigmoid(x), lambda out, x: (out * (1.0 - out),),
       lambda x: rf"\sigma\left({x}\right)", costly=True),
    Op("tanh", ("aten.tanh.default",), 1, lambda m, x: m.tanh(x), lambda out, x: (1.0 - out * out,),
       lambda x: rf"\tanh\left({x}\right)", costly=True),
    Op("relu", ("aten.relu.default",), 1, lambda m, x: m.relu(x),
       lambda out, x: (_where(_apply("gt", out, 0.0), 1.0, 0.0),), _fn("ReLU")),
    Op("softplus", (), 1, lambda m, x: m.softplus(x), lambda out, x: (_apply("sigmoid", x),),
       _fn("softplus"), costly=True),
    Op("sin", ("aten.sin.default",), 1, lambda m, x: m.sin(x), lambda out, x: (_apply("cos", x),),
       lambda x: rf"\sin\left({x}\right)", costly=True),
    Op("cos", ("aten.cos.default",), 1, lambda m, x: m.cos(x), lambda out, x: (-_apply("sin", x),),
       lambda x: rf"\cos\left({x}\right)", costly=True),
    Op("minimum", ("aten.minimum.default",), 2, lambda m, x, y: m.minimum(x, y), _minimum_partials,
       lambda x, y: rf"\min\left({x}, {y}\right)", commutes=True),
    Op("maximum", ("aten.maximum.default",), 2, lambda m, x, y: m.maximum(x, y),
       lambda out, x, y: _minimum_partials(out, x, y)[::-1], lambda x, y: rf"\max\left({x}, {y}\right)",
       commutes=True),
    Op("where", ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar"), 3,
       lambda m, c, x, y: m.where(c, x, y),
       lambda out, c, x, y: (None, _where(c, 1.0, 0.0), _where(c, 0.0, 1.0)),
       lambda c, x, y: rf"\begin{{cases}} {x} & {c} \\ {y} & \text{{otherwise}} \end{{cases}}",
       boolean_args=(0,)),
    Op("detach", ("aten.detach.default",), 1, lambda m, x: m.detach(x), lambda out, x: (None,),
       _fn("sg")),
    _compare("lt", "lt", lambda m, x, y: x < y, "<"),
    _compare("le", "le", lambda m, x, y: x <= y, r"\le"),
    _compare("gt", "gt", lambda m, x, y: x > y, ">"),
    _compare("ge", "ge", lambda m, x, y: x >= y, r"\ge"),
    _compare("eq", "eq", lambda m, x, y: m.equal(x, y), "="),
    _compare("ne", "ne", lambda m, x, y: m.not_equal(x, y), r"\ne"),
)  # fmt: skip


def _scaled(x: Any, alpha: float) -> Any:
    return x if alpha == 1 else x * alpha


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    smooth = _apply("softplus", _scaled(x, beta)) / beta
    # Beyond torch's own threshold softplus(x) - x is below 3e-9, so one formula serves.
    return smooth if threshold == 20 else _where(_apply("gt", _scaled(x, beta), threshold), x, smooth)


def _leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return _where(_apply("gt", x, 0.0), x, x * negative_slope)


def _clamp(x: Any, low: float | None = None, high: float | None = None) -> Any:
    # Selections rather than min and max: the gradient at a bound is 1, as torch has it.
    if low is not None:
        x = _where(_apply("lt", x, low), low, x)
    if high is not None:
        x = _where(_apply("gt", x, high), high, x)
    return x


def _hardtanh(x: Any, low: float = -1.0, high: float = 1.0) -> Any:
    # Unlike clamp, the gradient at a bound is 0.
    return _where(_apply("le", x, low), low, _where(_apply("ge", x, high), high, x))


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate != "tanh":
        raise LookupError('F.gelu(x, approximate="tanh") works; the exact form needs erf, which has no row yet')
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
    return 0.5 * x * (1.0 + _apply("tanh", inner))


_DERIVED = (
    Derived("add", ("aten.add.Tensor", "aten.add.Scalar"), lambda x, y, alpha=1: x + _scaled(y, alpha)),
    Derived("sub", ("aten.sub.Tensor", "aten.sub.Scalar"), lambda x, y, alpha=1: x - _scaled(y, alpha)),
    Derived("rsub", ("aten.rsub.Scalar", "aten.rsub.Tensor"), lambda x, y, alpha=1: y - _scaled(x, alpha)),
    Derived("reciprocal", ("aten.reciprocal.default",), lambda x: 1.0 / x),
    Derived("square", ("aten.square.default",), lambda x: x * x),
    Derived("pow", ("aten.pow.Tensor_Scalar",), power),
    Derived("softplus", ("aten.softplus.default",), _softplus),
    Derived("logsigmoid", ("aten.log_sigmoid_forward.default",), lambda x: (-_apply("softplus", -x), None)),
    Derived("silu", ("aten.silu.default",), lambda x: x * _apply("sigmoid", x)),
    Derived("leaky_relu", ("aten.leaky_relu.default",), _leaky_relu),
    Derived("clamp", ("aten.clamp.default",), _clamp),
    Derived("hardtanh", ("aten.hardtanh.default",), _hardtanh),
    Derived("clamp_min", ("aten.clamp_min.default",), lambda x, low: _clamp(x, low, None)),
    Derived("clamp_max", ("aten.clamp_max.default",), lambda x, high: _clamp(x, None, high)),
    Derived("gelu", ("aten.gelu.default",), _gelu),
    Derived("zeros_like", ("aten.zeros_like.default",), lambda x, **_: x.builder.const(0.0)),
    Derived("ones_like", ("aten.ones_like.default",), lambda x, **_: x.builder.const(1.0)),
    Derived("full_like", ("aten.full_like.default",), lambda x, value, **_: x.builder.const(value)),
    Derived("clone", ("aten.clone.default", "aten.alias.default"), lambda x, **_: x),
)

ROWS: dict[str, Op] = {op.name: op for op in _PRIMITIVES}

BY_ATEN: dict[str, Op | Derived] = {aten: row for row in (*_PRIMITIVES, *_DERIVED) for aten in row.aten}


def listing() -> str:
    """The operations a step may use, for error messages."""
    unspoken = {"clone", "rsub", "power", "sub"}
    return ", ".join(sorted({"subtract", "softsign", *(row.name for row in (*_PRIMITIVES, *_DERIVED))} - unspoken))
