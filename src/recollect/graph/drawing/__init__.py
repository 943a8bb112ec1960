"""Cells as pictures, drawn from their graphs: a step, and the cell over time."""

from importlib.resources import files

from recollect.graph.drawing.readings import Reading
from recollect.graph.drawing.step import draw_step
from recollect.graph.drawing.unrolled import draw_unrolled

__all__ = ["Reading", "draw_step", "draw_unrolled", "style_sheet"]


def style_sheet() -> str:
    """What a page with drawings adds to its style sheet; it takes its colours for text and paper from that."""
    return files("recollect.graph.drawing").joinpath("drawing.css").read_text(encoding="utf-8")
