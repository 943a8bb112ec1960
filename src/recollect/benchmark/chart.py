"""The ratios as a picture: one line per subject, one dot per shape, on a log axis."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from recollect.benchmark.results import Results, Row, geometric_mean, groups
from recollect.benchmark.subject import OURS
from recollect.benchmark.tables import TARGET, shapes_of

# Middle tones: at least 3 : 1 against white and against black. Each peer has a marker too, so colour alone never tells.
INK, FAINT = "#767b84", "#767b8455"
PEERS = {
    "torch.nn": ("#2f7fc1", "o"),
    "JAX": ("#d55e00", "s"),
    "ONNX Runtime": ("#b0609a", "D"),
    "eager loop": ("#009e73", "^"),
}
OWN = ("#8d8200", "v")  # another layer of ours, and any peer without a line above
_WIDTH, _GAP, _LEAST, _LINE = 8.0, 0.072, 0.2, 0.165  # inches: page, from dot to dot, a row, a line of the caption
_LEFT, _RIGHT = 0.36, 0.93  # of the width


def svg(found: Results) -> str:
    """Draw all rows of ``found``, which has at least one."""
    import matplotlib

    file = io.StringIO()
    # Text stays text, so that it can be read aloud, searched and scaled.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recollect"}):
        figure(found).savefig(file, format="svg", metadata={"Date": None, "Title": "Recollect beside its peers"})
    return file.getvalue()


def figure(found: Results) -> Any:
    """The same as a matplotlib Figure, 8 inches wide."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = [each for each in (_speeds(found.rows), _costs(found.rows)) if each]
    heights = [sum(_height(own) for _, _, own in groups(rows)) for rows in panels]
    caption = _caption(found)
    above, between, below = 0.35, 0.85, 0.6 + _LINE * len(caption)
    tall = above + sum(heights) + between * (len(panels) - 1) + below
    style: dict[Any, Any] = {"font.size": 8.5, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
             "ytick.color": INK, "axes.edgecolor": FAINT}  # fmt: skip
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(_WIDTH, tall))
        drawn.patch.set_alpha(0)
        top = tall - above
        for rows, height in zip(panels, heights, strict=True):
            _panel(drawn.add_axes((_LEFT, (top - height) / tall, _RIGHT - _LEFT, height / tall)), rows)
            top -= height + between
        for place, line in enumerate(reversed(caption)):
            drawn.text(0.01, (0.08 + _LINE * place) / tall, line, fontsize=7.5)
    return drawn


def _speeds(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.peer not in OURS]


def _costs(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.peer in OURS]


def _height(rows: Sequence[Row]) -> float:
    return max(_LEAST, _GAP * (len(rows) + 1))


def _panel(axis: Any, rows: Sequence[Row]) -> None:
    cost = rows[0].peer in OURS
    top, ticks = 0.0, []
    shapes = shapes_of(rows)
    for title, mode, own in groups(rows):
        height = _height(own)
        middle = top + height / 2
        ticks.append((middle, f"{title}, {mode}"))
        for place, row in enumerate(sorted(own, key=lambda row: shapes.index(row.shape))):
            _dot(axis, row, middle + _GAP * (place - (len(own) - 1) / 2))
        mean = geometric_mean(own)
        text = "refused" if mean is None else f"{mean:.2f}×"
        axis.text(1.01, middle, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
        top += height
        axis.axhline(top, color=FAINT, linewidth=0.4)
    axis.axvline(1, color=INK, linewidth=1)
    if cost:
        axis.axvline(TARGET, color=INK, linewidth=0.8, linestyle=":")
    axis.set(xscale="log", ylim=(top, 0), yticks=[at for at, _ in ticks], yticklabels=[name for _, name in ticks])
    axis.set_xlabel("our time / our plain layer's, for the same work: at 1 it costs nothing"
                    f" (dotted: {TARGET})" if cost else "peer's time / ours: right of 1 ours is faster")  # fmt: skip
    axis.set_title("What our own features cost" if cost else "Speed", loc="left", fontsize=10, fontweight="bold")
    axis.text(1.01, 1, "mean", transform=axis.transAxes, va="bottom", fontsize=7.5)
    _scale(axis, [value for row in rows if not row.refused for value in (row.low, row.high)])
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.patch.set_alpha(0)


def _dot(axis: Any, row: Row, at: float) -> None:
    if row.refused:
        return
    colour, marker = PEERS.get(row.peer, OWN)
    axis.plot([row.low, row.high], [at, at], color=colour, linewidth=1.1, alpha=0.75, solid_capstyle="butt")
    axis.plot(row.ratio, at, marker, color=colour, markersize=4, markeredgewidth=1,
              markerfacecolor="none" if row.undecided else colour)  # fmt: skip


def _scale(axis: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min([*values, 0.9]) / 1.05, max([*values, 1.3]) * 1.05
    fine = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2]
    digits = (1, 1.5, 2, 3, 4, 6, 8) if high / low < 12 else (1, 2, 5)
    coarse = [digit * 10.0**power for power in range(-3, 5) for digit in digits]
    ticks = [each for each in (fine if high / low < 2.5 else coarse) if low <= each <= high]
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{each:g}×" for each in ticks])
    axis.grid(axis="x", color=FAINT, linewidth=0.4)


def _caption(found: Results) -> list[str]:
    machine = found.machine
    names = ("recollect", "torch", "jax", "onnxruntime", "python")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if name in machine)
    least = min((row.pairs for row in found.rows if not row.refused), default=0)
    lines = [
        "Dot: median of the ratios of runs made in turn; line: their middle half; "
        f"at least {least} pairs. Mean: geometric.",
        "Hollow: the middle half holds 1, so the noise is wider than the difference and no winner is shown.",
    ]
    for rows, name in ((_speeds(found.rows), "Speed"), (_costs(found.rows), "Cost")):
        start = f"{name}, shapes (B, I, H, T) in the order of a row's dots from top to bottom: "
        lines += _wrapped(start, map(str, map(tuple, shapes_of(rows))))
    lines.append(
        f"{machine['cpu']} ({machine['llvm_cpu']}), {machine['threads']} threads, {machine['dtype']}; {versions}"
    )
    return lines + [f"Skipped: {title}, {why}" for title, why in found.skipped.items()]


def _wrapped(start: str, words: Any, width: int = 150) -> list[str]:
    import textwrap

    words = [word.replace(" ", "\N{NO-BREAK SPACE}") for word in words]
    return textwrap.wrap(start + ", ".join(words), width, subsequent_indent="    ") if words else []
