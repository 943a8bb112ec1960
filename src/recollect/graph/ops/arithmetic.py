"""Sums, products, powers and roots."""

from __future__ import annotations

import operator
from typing import Any

from recollect.graph.ops.row import Derived, Op, Row, apply, call, function, where


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
        return apply("sqrt", x)
    if exponent == 0.0:
        return x.builder.const(1.0)
    return apply("power", x, attr=float(exponent))


def _pow_partials(out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    # 0 to a power that is not negative does not depend on it, and what is to the power 0 not on the base.
    flat = apply("logical_and", apply("eq", x, 0.0), apply("ge", y, 0.0))
    by_base = where(apply("eq", y, 0.0), 0.0, y * apply("pow", x, y - 1.0))
    return by_base, where(flat, 0.0, out * apply("log", x))


def _scaled(x: Any, alpha: float) -> Any:
    return x if alpha == 1 else x * alpha


def _lerp(target: Any, x: Any, y: Any, weight: Any) -> Any:
    # From the nearer end, as torch: exact at both.
    return target.where(target.abs(weight) < 0.5, x + weight * (y - x), y + (weight - 1.0) * (y - x))


ROWS: tuple[Row, ...] = (
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
    function("abs", lambda out, x: (where(apply("gt", x, 0.0), 1.0, where(apply("lt", x, 0.0), -1.0, 0.0)),),
             lambda x: rf"\left|{x}\right|", costly=False),
    function("copysign", lambda out, x, y: (where(apply("eq", x, 0.0), 0.0, out / x), None), call("copysign"),
             aten=("aten.copysign.Tensor", "aten.copysign.Scalar"), arity=2, costly=False),
    function("sqrt", lambda out, x: (0.5 / out,), lambda x: rf"\sqrt{{{x}}}"),
    Op("power", (), 1, lambda m, x, exponent: m.power(x, exponent),
       lambda out, x, exponent: (exponent * power(x, exponent - 1.0),),
       lambda x, exponent: rf"{{{x}}}^{{{exponent:g}}}", binds=3, costly=True, takes_number=True),
    function("pow", _pow_partials, lambda x, y: rf"{{{x}}}^{{{y}}}", aten=("aten.pow.Tensor_Tensor",),
             arity=2, binds=3),
    # A primitive, because its choice of formula would double its derivative.
    Op("lerp", ("aten.lerp.Scalar", "aten.lerp.Tensor"), 3, _lerp,
       lambda out, x, y, weight: (1.0 - weight, weight, y - x), call("lerp")),
    Derived("add", ("aten.add.Tensor", "aten.add.Scalar"), lambda x, y, alpha=1: x + _scaled(y, alpha)),
    Derived("sub", ("aten.sub.Tensor", "aten.sub.Scalar"), lambda x, y, alpha=1: x - _scaled(y, alpha)),
    Derived("rsub", ("aten.rsub.Scalar", "aten.rsub.Tensor"), lambda x, y, alpha=1: y - _scaled(x, alpha)),
    Derived("addcmul", ("aten.addcmul.default",), lambda x, y, z, value=1: x + _scaled(y * z, value)),
    Derived("addcdiv", ("aten.addcdiv.default",), lambda x, y, z, value=1: x + _scaled(y / z, value)),
    Derived("reciprocal", ("aten.reciprocal.default",), lambda x: 1.0 / x),
    Derived("square", ("aten.square.default",), lambda x: x * x),
    Derived("rsqrt", ("aten.rsqrt.default",), lambda x: 1.0 / apply("sqrt", x)),
    Derived("pow", ("aten.pow.Tensor_Scalar",), power),
    Derived("pow", ("aten.pow.Scalar",), lambda base, x: apply("exp2", x) if base == 2 else apply("pow", base, x)),
)  # fmt: skip
