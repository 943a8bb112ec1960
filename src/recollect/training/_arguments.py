"""Arguments that several functions check in the same way."""

from __future__ import annotations

import numbers
import operator

from recollect.errors import InputError


def whole_number(name: str, value: object, *, at_least: int) -> int:
    """Return ``value`` as an int; InputError unless it is a whole number of ``at_least`` or more."""
    # A bool is an int to Python, but as a window or a number of epochs it is a slip of the pen.
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # pyright: ignore[reportArgumentType]
        except TypeError:
            pass
        else:
            if number >= at_least:
                return number
    raise InputError(
        f"{name} cannot be used", given=f"{name}={value!r}", expected=f"a whole number, at least {at_least}"
    )


def positive_limit(name: str, value: object) -> float:
    """Return ``value`` as a float; InputError unless it is a number above 0 (infinity is allowed)."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if number > 0:
            return number
    raise InputError(
        f"{name} cannot be used",
        given=f"{name}={value!r}",
        expected="a number greater than 0",
        remedy=f"{name}=math.inf measures without clipping; a limit of 0 would stop all learning",
    )
