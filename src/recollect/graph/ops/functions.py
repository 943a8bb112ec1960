"""The elementary functions, and the error function."""

from __future__ import annotations

import math
from typing import Any

from recollect.graph.ops.row import Derived, Row, apply, call, function

_SLOPE_OF_ERF = 2.0 / math.sqrt(math.pi)
_LN2 = math.log(2.0)


def _root(x: Any) -> Any:
    return apply("sqrt", x)


ROWS: tuple[Row, ...] = (
    function("exp", lambda out, x: (out,), lambda x: rf"e^{{{x}}}", binds=3),
    function("exp2", lambda out, x: (out * _LN2,), lambda x: rf"2^{{{x}}}", binds=3),
    function("expm1", lambda out, x: (out + 1.0,), call("expm1")),
    function("log", lambda out, x: (1.0 / x,), call(r"\ln")),
    function("log1p", lambda out, x: (1.0 / (x + 1.0),), call("log1p")),
    function("logaddexp", lambda out, x, y: (apply("sigmoid", x - y), apply("sigmoid", y - x)),
             lambda x, y: rf"\ln\left(e^{{{x}}} + e^{{{y}}}\right)", arity=2, commutes=True),
    function("erf", lambda out, x: (_SLOPE_OF_ERF * apply("exp", -(x * x)),), call("erf")),
    function("erfc", lambda out, x: (-_SLOPE_OF_ERF * apply("exp", -(x * x)),), call("erfc")),
    function("sin", lambda out, x: (apply("cos", x),), call(r"\sin")),
    function("cos", lambda out, x: (-apply("sin", x),), call(r"\cos")),
    function("tan", lambda out, x: (out * out + 1.0,), call(r"\tan")),
    function("asin", lambda out, x: (1.0 / _root(1.0 - x * x),), call(r"\arcsin")),
    function("acos", lambda out, x: (-1.0 / _root(1.0 - x * x),), call(r"\arccos")),
    function("atan", lambda out, x: (1.0 / (x * x + 1.0),), call(r"\arctan")),
    function("sinh", lambda out, x: (apply("cosh", x),), call(r"\sinh")),
    function("cosh", lambda out, x: (apply("sinh", x),), call(r"\cosh")),
    function("tanh", lambda out, x: (1.0 - out * out,), call(r"\tanh")),
    function("asinh", lambda out, x: (1.0 / _root(x * x + 1.0),), call("arsinh")),
    function("acosh", lambda out, x: (1.0 / _root(x * x - 1.0),), call("arcosh")),
    function("atanh", lambda out, x: (1.0 / (1.0 - x * x),), call("artanh")),
    Derived("log2", ("aten.log2.default",), lambda x: apply("log", x) / _LN2),
    Derived("log10", ("aten.log10.default",), lambda x: apply("log", x) / math.log(10.0)),
)  # fmt: skip
