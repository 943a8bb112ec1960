"""Constants in the shape of a value, and values without their gradient."""

from __future__ import annotations

from recollect.graph.ops.row import Derived, Row, call, function

ROWS: tuple[Row, ...] = (
    function("detach", lambda out, x: (None,), call("sg"), costly=False),
    Derived("zeros_like", ("aten.zeros_like.default",), lambda x, **_: x.builder.const(0.0)),
    Derived("ones_like", ("aten.ones_like.default",), lambda x, **_: x.builder.const(1.0)),
    Derived("full_like", ("aten.full_like.default",), lambda x, value, **_: x.builder.const(value)),
    Derived("clone", ("aten.clone.default", "aten.alias.default"), lambda x, **_: x),
)
