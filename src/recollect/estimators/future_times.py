"""The times that follow a series."""

from __future__ import annotations

import numpy as np


def future_times(time: np.ndarray | None, count: int) -> np.ndarray | None:
    """Continue regular times.

    Args:
        time: ``datetime64`` [n] or integers [n], increasing; None is allowed.
        count: times wanted.

    Returns:
        ``count`` times of the same dtype: in whole months, where all of ``time`` is on one day of the month
        or on each month's last day; else at the one step that all of ``time`` has. None where it has none.
    """
    if time is None or len(time) < 2:
        return None
    ahead = np.arange(1, count + 1)
    # Months first: July to September is two steps of 31 days as well, and October begins after 30.
    if time.dtype.kind == "M":
        months = time.astype("datetime64[M]")
        steps = np.diff(months.astype(np.int64))
        following = months[-1] + ahead * steps[0]
        for days_from, future in ((months, following), (months + 1, following + 1)):
            # A month's last day is counted back from the month after it.
            offsets = time - days_from.astype(time.dtype)
            if steps[0] > 0 and (steps == steps[0]).all() and (offsets == offsets[0]).all():
                return future.astype(time.dtype) + offsets[0]
    gaps = np.diff(time)
    return time[-1] + ahead * gaps[0] if (gaps == gaps[0]).all() else None
