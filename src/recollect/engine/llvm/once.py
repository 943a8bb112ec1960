"""A property that is computed once and holds no lock.

That of the standard library takes one for all objects of a class until Python 3.12. Kernels are compiled in
such a property: threads would wait for each other's, and a child that was forked meanwhile for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached_property(Generic[T]):  # noqa: N801  (as in the standard library)
    """Computed at first use and kept in the object; by two threads at once it may be computed twice."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> T:
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
