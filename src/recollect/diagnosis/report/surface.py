"""The loss around the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recollect.diagnosis.report.page import escape, figure, how_to_read

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis


def section(diagnosis: Diagnosis) -> str:
    surface: Any = getattr(diagnosis, "surface", None)
    if surface is None:
        return ""
    read = how_to_read(
        "The loss over a plane through the present weights. Hatched places are cliffs, where it changes abruptly; "
        "lines follow weights step by step, and one that leaves the frame is drawn up to it."
    )
    return figure("Loss over two directions of the weights", surface.to_svg() + read, wide=True) + (
        f"<pre class=said>{escape(str(surface))}</pre>"
    )
