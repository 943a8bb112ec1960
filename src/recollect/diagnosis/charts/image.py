"""Numbers as an image: a colour for each, in a PNG that lies in the page itself."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray


def data_uri(values: NDArray[np.float64], low: float, high: float, colours: str = "viridis") -> str:
    """Paint an array, one pixel for each number, as a ``data:`` address.

    Args:
        values: [rows, columns], the first row on top; what is not finite stays transparent.
        low, high: the values of the first and the last colour; what lies beyond gets these.
        colours: the name of a colour map of matplotlib's.
    """
    import matplotlib
    from matplotlib import image

    shares = (np.clip(values, low, high) - low) / (high - low if high > low else 1.0)
    pixels = matplotlib.colormaps[colours](np.ma.masked_invalid(shares), bytes=True)
    pixels[~np.isfinite(values), 3] = 0
    buffer = io.BytesIO()
    image.imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
