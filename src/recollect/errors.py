"""What a user can catch.

Every error says what was wrong, what was given, what was expected and what to do about it. Each also
derives from the built-in that Python's users would reach for, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

_UNSAID = object()


class RecollectError(Exception):
    """The base of every error that Recollect raises on purpose.

    Args:
        what: one sentence that says what was wrong.
        given: what was received, as the user would recognise it.
        expected: what would have been accepted.
        remedy: what to do now.
    """

    def __init__(
        self, what: str, *, given: object = _UNSAID, expected: object = None, remedy: str | None = None
    ) -> None:
        self.what, self.expected, self.remedy = what, expected, remedy
        self.given = None if given is _UNSAID else given
        parts = [what]
        if given is not _UNSAID:
            parts.append(f"given: {given}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if remedy is not None:
            parts.append(f"remedy: {remedy}")
        super().__init__("; ".join(parts))


class CellError(RecollectError, ValueError):
    """A cell's declaration or its step function cannot be used; quotes the user's own code."""


class GraphError(RecollectError, ValueError):
    """A serialised graph is malformed, or names an operation that has no row."""


class InputError(RecollectError, ValueError, RuntimeError):
    """A tensor, state, length or argument does not fit what was asked of it.

    Both built-in errors are its bases, since torch.nn's layers raise the one for some calls and the other for others.
    """


class OptionError(InputError, TypeError):
    """A keyword argument that the call does not take."""


class BackendError(RecollectError, RuntimeError):
    """The backend that was forced cannot serve this call."""


class NotYetError(RecollectError, NotImplementedError):
    """Part of the promised surface that is not built yet; says what to use until then."""


class TrainingError(RecollectError, RuntimeError):
    """Training cannot start or cannot go on."""


class MissingPackageError(RecollectError, ImportError):
    """An optional package is not installed; says how to install it."""


class DataError(RecollectError, ValueError):
    """A table, column or series cannot be used as it is."""


class NotFittedError(RecollectError, ValueError, AttributeError):
    """An estimator was asked for a result before ``fit``."""


class ModelFileError(RecollectError, ValueError):
    """A model file is truncated, altered, foreign or of a newer format; nothing in it was run."""
