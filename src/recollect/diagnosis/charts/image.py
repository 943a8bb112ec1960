"""Numbers as an image: a colour for each, in a PNG that lies in the page itself."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def data_uri(values: NDArray[np.float64], low: float, high: float, colours: str = "viridis", shades: int = 255) -> str:
    """Paint an array, one pixel for each number, as a ``data:`` address.

    Args:
        values: [rows, columns], the first row on top; what is not finite stays transparent.
        low, high: the values of the first and the last colour; what lies beyond gets these.
        colours: the name of a colour map of matplotlib's.
        shades: how many of its colours, at most 255; fewer make a smaller image.
    """
    import matplotlib

    known = np.isfinite(values)
    shares = (np.clip(np.where(known, values, low), low, high) - low) / (high - low if high > low else 1.0)
    pixels = np.where(known, 1 + np.rint(shares * (shades - 1)), 0).astype(np.uint8)  # shade 0 is none
    palette = matplotlib.colormaps[colours](np.linspace(0.0, 1.0, shades), bytes=True)[:, :3]
    return "data:image/png;base64," + base64.b64encode(_png(pixels, palette)).decode()


def _png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """A PNG of indexed colours (W3C's specification, third edition); index 0 is transparent, n is palette[n - 1]."""
    rows, columns = pixels.shape
    lines = np.hstack([np.zeros((rows, 1), np.uint8), pixels])  # each begins with its filter: none
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0),
        b"PLTE": bytes(3) + palette.tobytes(),
        b"tRNS": b"\0",
        b"IDAT": zlib.compress(lines.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
