"""The loss around the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect.diagnosis.charts import surface as chart

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis


def section(diagnosis: Diagnosis) -> str:
    return "" if diagnosis.surface is None else chart.section(diagnosis.surface)
