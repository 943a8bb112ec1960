"""The activations of ``torch.nn.functional``."""

from __future__ import annotations

import math
from typing import Any

from recollect.graph.ops.row import Derived, Row, apply, call, function, where


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    scaled = x if beta == 1 else x * beta
    smooth = apply("softplus", scaled) / beta
    # Beyond torch's own threshold softplus(x) - x is below 3e-9, so one formula serves.
    return smooth if threshold == 20 else where(apply("gt", scaled, threshold), x, smooth)


def _elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    # The exponential of a large x would overflow in the branch that is not taken.
    below = apply("le", x, 0.0)
    curve = apply("expm1", where(below, x, 0.0) * input_scale)
    return where(below, curve * (alpha * scale), x * scale)


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1.0 + apply("tanh", inner))
    return 0.5 * x * (1.0 + apply("erf", x * math.sqrt(0.5)))


def _hardtanh(x: Any, low: float = -1.0, high: float = 1.0) -> Any:
    # Unlike clamp, the gradient at a bound is 0.
    return where(apply("le", x, low), low, where(apply("ge", x, high), high, x))


def _hardsigmoid(x: Any) -> Any:
    return where(apply("le", x, -3.0), 0.0, where(apply("ge", x, 3.0), 1.0, (x + 3.0) / 6.0))


def _softshrink(x: Any, lambd: float = 0.5) -> Any:
    return where(apply("gt", x, lambd), x - lambd, where(apply("ge", x, -lambd), 0.0, x + lambd))


ROWS: tuple[Row, ...] = (
    function("relu", lambda out, x: (where(apply("gt", out, 0.0), 1.0, 0.0),), call("ReLU"), costly=False),
    function("sigmoid", lambda out, x: (out * (1.0 - out),), call(r"\sigma")),
    function("softplus", lambda out, x: (apply("sigmoid", x),), call("softplus"), aten=()),
    Derived("softplus", ("aten.softplus.default",), _softplus),
    Derived("logsigmoid", ("aten.log_sigmoid_forward.default",), lambda x: (-apply("softplus", -x), None)),
    Derived("silu", ("aten.silu.default",), lambda x: x * apply("sigmoid", x)),
    Derived("mish", ("aten.mish.default",), lambda x: x * apply("tanh", apply("softplus", x))),
    Derived("gelu", ("aten.gelu.default",), _gelu),
    Derived("elu", ("aten.elu.default",), _elu),
    Derived("celu", ("aten.celu.default",), lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1.0 / alpha)),
    Derived("leaky_relu", ("aten.leaky_relu.default",),
            lambda x, negative_slope=0.01: where(apply("gt", x, 0.0), x, x * negative_slope)),
    Derived("threshold", ("aten.threshold.default",), lambda x, bound, value: where(apply("le", x, bound), value, x)),
    Derived("hardtanh", ("aten.hardtanh.default",), _hardtanh),
    Derived("hardsigmoid", ("aten.hardsigmoid.default",), _hardsigmoid),
    Derived("hardswish", ("aten.hardswish.default",), lambda x: x * _hardsigmoid(x)),
    Derived("hardshrink", ("aten.hardshrink.default",),
            lambda x, lambd=0.5: where(apply("le", apply("abs", x), lambd), 0.0, x)),
    Derived("softshrink", ("aten.softshrink.default",), _softshrink),
)  # fmt: skip
