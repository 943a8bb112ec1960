"""Handwritten digits, each an image that is read row by row."""

from __future__ import annotations

import numpy as np


def digits_rows() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's digits as sequences: 8 steps, one row of 8 pixels at each.

    Returns:
        ``X`` float32 [1797, 8, 8], ink from 0 to 1 (the file's 0 to 16, divided by 16), and ``y`` int64
        [1797], the digit.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository; the copy that comes with scikit-learn.
    """
    # Takes as long to import as the rest of this package together.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.asarray(images / 16, np.float32).reshape(-1, 8, 8), np.asarray(labels, np.int64)
