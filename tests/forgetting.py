"""What the engine keeps from call to call, forgotten: for tests that change how a call is made."""

from __future__ import annotations

from recollect.engine import calls, plain


def forget_problems() -> None:
    """The next call of a layer divides its work, and asks for its kernels, anew."""
    for kept in (calls.kept_problem, calls.sized_problem, plain._calls):
        kept.cache_clear()
