"""Checks of an estimator's parameters, which ``__init__`` only stores."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

from recollect.errors import InputError


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is a whole number; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Raise InputError unless ``value`` is a whole number, ``at_least`` or more, that fits into 64 bits."""
    if not (is_whole(value) and at_least <= value < 2**63):
        raise _unusable(name, value, f"a whole number, {at_least} or more")


def check_positive(name: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a finite number above 0."""
    if not (_is_number(value) and 0 < value < math.inf):
        raise _unusable(name, value, "a number above 0")


def check_number(name: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a finite number."""
    if not (_is_number(value) and math.isfinite(value)):
        raise _unusable(name, value, "a finite number")


def check_fraction(name: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a number from 0 to below 1."""
    if not (_is_number(value) and 0 <= value < 1):
        raise _unusable(name, value, "a number from 0 to below 1")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _unusable(name: str, value: Any, expected: str) -> InputError:
    return InputError(f"{name} cannot be used", given=repr(value), expected=expected)
