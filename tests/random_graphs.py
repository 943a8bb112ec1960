"""Random expression graphs over all rows, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from recollect.graph import ops
from recollect.graph.graph import Builder

LEAVES = ("inp.a", "rec.a", "prev.h", "vec.p")
NUMBERS = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])


@st.composite
def graphs(draw, rows=tuple(ops.ROWS), numbers=NUMBERS):
    """Graphs with up to 12 operations, up to three outputs and a name for every value."""
    builder = Builder()
    values = [builder.leaf(name) for name in LEAVES]
    for _ in range(draw(st.integers(1, 12))):
        row = ops.ROWS[draw(st.sampled_from(rows))]
        args = [draw(st.sampled_from(values) | numbers) for _ in range(row.arity)]
        if all(isinstance(arg, float) for arg in args):
            args[0] = values[0]
        number = draw(st.sampled_from([1.7, -0.3, 4.0])) if row.takes_number else None
        values.append(builder.apply(row.name, *args, attr=number))
    chosen = draw(st.lists(st.sampled_from([v for v in values if not v.boolean]), min_size=1, max_size=3))
    return builder.build(
        {f"s{i}": expr for i, expr in enumerate(chosen)}, {f"v{i}": expr for i, expr in enumerate(values)}
    )
