"""A name that the process chooses, or a ``with`` block for itself."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from recollect.errors import InputError

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A choice that the whole process may have made: of ``chooser``, which is gone where nothing is to follow."""

    name: str
    chooser: weakref.ref[Chooser] | None = None


class Setting:
    """What was chosen, by whom.

    Nothing is saved and put back, so however threads, tasks and generators take turns, a block leaves nothing behind.
    No lock either: each change is one operation on a list or on a variable of the context. And a block is known by a
    weak reference to what its ``with`` statement holds, so that one whose end an interrupt cut short does not count.

    Attributes:
        calls: what the process chose; the last one counts.
        blocks: the ``with`` blocks of this thread or async task, which go before it; the last one that is there counts.
        latest: what the last change, of any thread, left chosen. Compilers look at it, see `as_traced`.
    """

    def __init__(self, title: str, default: str) -> None:
        self.calls = [Call(default)]
        self.blocks: ContextVar[Sequence[weakref.ref[Chooser]]] = ContextVar(title, default=())
        self.latest = default

    def name(self) -> str:
        """The name that counts here and now."""
        for block in reversed(self.blocks.get()):
            if (chooser := block()) is not None:
                return chooser.name
        return self.calls[-1].name

    def call(self, call: Call) -> None:
        """Choose for the process."""
        self.calls.append(call)
        # A call whose chooser is gone will not turn into a block, so what stands before it is never needed again.
        calls = list(self.calls)
        final = [place for place, earlier in enumerate(calls) if earlier.chooser is None or earlier.chooser() is None]
        for stale in calls[: final[-1]]:
            with contextlib.suppress(ValueError):  # another thread was here
                self.calls.remove(stale)
        self.latest = self.name()

    def withdraw(self, call: Call) -> None:
        """Take a choice back, as it is one of a block."""
        with contextlib.suppress(ValueError):
            self.calls.remove(call)
        self.latest = self.name()

    def enter(self, chooser: Chooser) -> None:
        """Choose for the block that begins."""
        self.blocks.set((*self._blocks(), weakref.ref(chooser)))
        self.latest = self.name()

    def leave(self, chooser: Chooser) -> None:
        """End the innermost block of ``chooser``; where generators take turns it need not be the innermost of all."""
        blocks, block = self._blocks(), weakref.ref(chooser)
        if block in blocks:  # and not ended in another context than it began in
            blocks.reverse()
            blocks.remove(block)
            self.blocks.set(tuple(reversed(blocks)))
        self.latest = self.name()

    def _blocks(self) -> list[weakref.ref[Chooser]]:
        """Those that have not ended."""
        return [block for block in self.blocks.get() if block() is not None]


class Chooser:
    """What a ``set_...`` function of ours returns: the choice is made, unless ``with`` takes it for a block alone.

    Only after the call does Python say whether a block follows. In between, for less than a microsecond, the choice is
    the process's; an interrupt at that very moment leaves what a plain call would.
    """

    _setting: ClassVar[Setting]

    def __init__(self, name: str) -> None:
        self.name = name
        self._call = Call(name, weakref.ref(self))
        self._setting.call(self._call)

    def __enter__(self) -> Self:
        self._setting.withdraw(self._call)
        self._setting.enter(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._setting.leave(self)

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function: it runs in a block of its own.

        Raises:
            InputError: calling it would only make a generator or coroutine, which runs after the block.
        """
        self._setting.withdraw(self._call)
        if any(test(function) for test in (inspect.isgeneratorfunction, inspect.iscoroutinefunction, _is_async_gen)):
            raise InputError(
                f"{type(self).__name__} decorates functions that run when they are called",
                given=f"{function.__name__}, which is a generator or coroutine",
                remedy=f"write `with recollect.{type(self).__name__}({self.name!r}):` inside of it",
            )

        @functools.wraps(function)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            with copy.copy(self):  # which only this call holds
                return function(*args, **kwargs)

        return chosen  # pyright: ignore[reportReturnType]


_is_async_gen = inspect.isasyncgenfunction


def as_traced(setting: Setting, latest: str) -> str:
    """The name that counts, for code that `torch.compile` traces, which cannot follow variables of a context.

    The graph keeps what is chosen where it is traced. ``latest`` is ``setting.latest``, which the caller reads for the
    compiler to see: where that changes, the layer is traced anew.
    """
    return setting.name()


# As torch.compiler.assume_constant_result marks it, whose import takes longer than that of this package.
as_traced._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
