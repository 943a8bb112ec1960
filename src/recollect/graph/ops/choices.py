"""Conditions, what makes them, and what chooses by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from recollect.graph.ops.row import Derived, Op, Row, apply, call, function, where


def _compare(name: str, emit: Callable[..., Any], sign: str) -> Op:
    return Op(
        name,
        (f"aten.{name}.Tensor", f"aten.{name}.Scalar"),
        2,
        emit,
        lambda out, x, y: (None, None),
        lambda x, y: rf"{x} {sign} {y}",
        binds=-1,
        boolean=True,
        commutes=name in ("eq", "ne"),
    )


def _connect(name: str, sign: str) -> Op:
    return function(
        name,
        lambda out, c, d: (None, None),
        lambda c, d: rf"{c} {sign} {d}",
        arity=2,
        binds=-1,
        costly=False,
        boolean=True,
        boolean_args=(0, 1),
        commutes=True,
    )


def _not(c: Any) -> Any:
    return apply("logical_not", c)


def _xor(c: Any, d: Any) -> Any:
    return apply("logical_and", apply("logical_or", c, d), _not(apply("logical_and", c, d)))


def _bitwise(name: str, expand: Callable[..., Any]) -> Derived:
    """``& | ~ ^``: on conditions what the words say; on whole numbers something that a step has no use for."""

    def on_conditions(*args: Any) -> Any:
        for arg in args:
            if not isinstance(arg, bool) and not arg.boolean and arg.node.attr not in (0.0, 1.0):
                raise LookupError("& | ^ ~ combine conditions, as in (a > 0) & (b < 1)")
        return expand(*args)

    overloads = ("default",) if name == "not" else ("Tensor", "Scalar", "Scalar_Tensor")
    return Derived(f"bitwise_{name}", tuple(f"aten.bitwise_{name}.{each}" for each in overloads), on_conditions)


def _is_nan(x: Any) -> Any:
    return apply("ne", x, x)


def _minimum_partials(out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    # torch shares the gradient of a tie in halves.
    tie = where(apply("eq", x, y), 0.5, 0.0)
    return where(apply("lt", x, y), 1.0, tie), where(apply("lt", y, x), 1.0, tie)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    # Selections rather than min and max: the gradient at a bound is 1, as torch has it until 2.13.
    for bound, beyond in ((low, "lt"), (high, "gt")):
        if bound is not None:
            outside = apply(beyond, x, bound)
            if hasattr(bound, "builder") and bound.node.op != "const":
                outside = apply("logical_or", outside, _is_nan(bound))
            x = where(outside, bound, x)
    return x


def _the_number(name: str, nearer: str) -> Derived:
    """fmin and fmax: the number where the other is NaN. A tie's gradient is the first one's, as in torch until 2.13."""

    def expand(x: Any, y: Any) -> Any:
        return where(apply("logical_or", apply(nearer, x, y), _is_nan(y)), x, y)

    return Derived(name, (f"aten.{name}.default",), expand)


def _nan_to_num(x: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Any:
    if posinf is None or neginf is None:
        raise LookupError("give posinf= and neginf=: by default they are the largest numbers of one dtype")
    x = where(apply("eq", x, math.inf), posinf, where(apply("eq", x, -math.inf), neginf, x))
    return where(_is_nan(x), 0.0 if nan is None else nan, x)


def _heaviside(x: Any, value: Any) -> Any:
    raise LookupError("torch has no derivative of it; torch.where(x > 0, 1.0, 0.0) has")


ROWS: tuple[Row, ...] = (
    _compare("lt", lambda m, x, y: x < y, "<"),
    _compare("le", lambda m, x, y: x <= y, r"\leq"),
    _compare("gt", lambda m, x, y: x > y, ">"),
    _compare("ge", lambda m, x, y: x >= y, r"\geq"),
    _compare("eq", lambda m, x, y: m.equal(x, y), "="),
    _compare("ne", lambda m, x, y: m.not_equal(x, y), r"\ne"),
    _connect("logical_and", r"\wedge"),
    _connect("logical_or", r"\vee"),
    function("logical_not", lambda out, c: (None,), lambda c: rf"\neg {c}",
             binds=0, costly=False, boolean=True, boolean_args=(0,)),
    Derived("logical_xor", ("aten.logical_xor.default",), _xor),
    _bitwise("and", lambda c, d: apply("logical_and", c, d)),
    _bitwise("or", lambda c, d: apply("logical_or", c, d)),
    _bitwise("not", _not),
    _bitwise("xor", _xor),
    Derived("isnan", ("aten.isnan.default",), _is_nan),
    Derived("isinf", ("aten.isinf.default",), lambda x: apply("eq", apply("abs", x), math.inf)),
    Derived("isposinf", ("aten.isposinf.default",), lambda x: apply("eq", x, math.inf)),
    Derived("isneginf", ("aten.isneginf.default",), lambda x: apply("eq", x, -math.inf)),
    Op("where", ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar"), 3,
       lambda m, c, x, y: m.where(c, x, y),
       lambda out, c, x, y: (None, where(c, 1.0, 0.0), where(c, 0.0, 1.0)),
       lambda c, x, y: rf"\begin{{cases}} {x} & {c} \\ {y} & \text{{otherwise}} \end{{cases}}",
       boolean_args=(0,)),
    function("minimum", _minimum_partials, call(r"\min"), arity=2, costly=False, commutes=True),
    function("maximum", lambda out, x, y: _minimum_partials(out, x, y)[::-1], call(r"\max"),
             arity=2, costly=False, commutes=True),
    _the_number("fmin", "le"),
    _the_number("fmax", "ge"),
    Derived("clamp", ("aten.clamp.default", "aten.clamp.Tensor"), _clamp),
    Derived("clamp_min", ("aten.clamp_min.default", "aten.clamp_min.Tensor"), lambda x, low: _clamp(x, low, None)),
    Derived("clamp_max", ("aten.clamp_max.default", "aten.clamp_max.Tensor"), lambda x, high: _clamp(x, None, high)),
    Derived("masked_fill", ("aten.masked_fill.Scalar", "aten.masked_fill.Tensor"),
            lambda x, mask, value: where(mask, value, x)),
    Derived("nan_to_num", ("aten.nan_to_num.default",), _nan_to_num),
    Derived("heaviside", ("aten.heaviside.default",), _heaviside),
)  # fmt: skip
