"""Whole numbers, remainders and signs: steps, whose derivative is 0 almost everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recollect.graph.ops.row import Derived, Op, Row, apply, function, where


def _ceil(x: Any) -> Any:
    return -apply("floor", -x)


def _trunc(x: Any) -> Any:
    return where(apply("lt", x, 0.0), _ceil(x), apply("floor", x))


def _round_to(x: Any, decimals: int = 0) -> Any:
    unit = 10.0 ** abs(decimals)
    if decimals > 0:
        return apply("round", x * unit) / unit
    return apply("round", x / unit) * unit


def _remainder(x: Any, divisor: float) -> Any:
    # fmod has x's sign, this the divisor's. Adding -0.0 changes nothing, not even a zero's sign.
    rest = apply("fmod", x, attr=float(divisor))
    return rest + where(apply("gt" if divisor < 0 else "lt", rest, 0.0), divisor, -0.0)


def _by_a_number(expand: Callable[[Any, float], Any]) -> Callable[[Any, Any], Any]:
    """torch's gradient to the divisor is a quotient rounded down, of no use in a step."""

    def expand_for_numbers(x: Any, divisor: Any) -> Any:
        if hasattr(x, "builder") and hasattr(divisor, "builder") and divisor.node.op == "const":
            divisor = divisor.node.attr
        if not hasattr(x, "builder") or hasattr(divisor, "builder"):
            raise LookupError("the divisor of fmod and remainder must be a number")
        return expand(x, divisor)

    return expand_for_numbers


ROWS: tuple[Row, ...] = (
    function("floor", lambda out, x: (None,), lambda x: rf"\left\lfloor {x} \right\rfloor", costly=False),
    # To the nearest whole number, ties to the even one.
    function("round", lambda out, x: (None,), lambda x: rf"\left\lfloor {x} \right\rceil", costly=False),
    Op("fmod", (), 1, lambda m, x, divisor: m.fmod(x, divisor), lambda out, x, divisor: (1.0,),
       lambda x, divisor: rf"\operatorname{{fmod}}\left({x}, {divisor:g}\right)", costly=True, takes_number=True),
    Derived("ceil", ("aten.ceil.default",), _ceil),
    Derived("trunc", ("aten.trunc.default",), _trunc),
    Derived("frac", ("aten.frac.default",), lambda x: x - _trunc(x)),
    Derived("round", ("aten.round.decimals",), _round_to),
    Derived("fmod", ("aten.fmod.Scalar", "aten.fmod.Tensor"),
            _by_a_number(lambda x, divisor: apply("fmod", x, attr=float(divisor)))),
    Derived("remainder", ("aten.remainder.Scalar", "aten.remainder.Tensor", "aten.remainder.Scalar_Tensor"),
            _by_a_number(_remainder)),
    Derived("sign", ("aten.sign.default", "aten.sgn.default"),
            lambda x: where(apply("gt", x, 0.0), 1.0, where(apply("lt", x, 0.0), -1.0, 0.0))),
)  # fmt: skip
