"""What a row of the table of operations is, and what the rows are written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Latex = Callable[..., str]


class Target(Protocol):
    """What a target offers so that every row can be printed into it.

    Values of the target support ``+ - * /``, negation and ``< <= > >=``. ``x`` is a value, ``c`` a
    condition (the result of a comparison). What is not explained is what torch calls by that name.
    """

    def const(self, value: float) -> Any: ...
    def where(self, c: Any, x: Any, y: Any) -> Any: ...
    def detach(self, x: Any) -> Any: ...

    def equal(self, x: Any, y: Any) -> Any: ...
    def not_equal(self, x: Any, y: Any) -> Any: ...
    def logical_and(self, c: Any, d: Any) -> Any: ...
    def logical_or(self, c: Any, d: Any) -> Any: ...
    def logical_not(self, c: Any) -> Any: ...

    def abs(self, x: Any) -> Any: ...
    def copysign(self, x: Any, y: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...
    def floor(self, x: Any) -> Any: ...
    def round(self, x: Any) -> Any: ...
    def fmod(self, x: Any, divisor: float) -> Any: ...

    def sqrt(self, x: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def pow(self, x: Any, y: Any) -> Any: ...
    def exp(self, x: Any) -> Any: ...
    def exp2(self, x: Any) -> Any: ...
    def expm1(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def log1p(self, x: Any) -> Any: ...
    def logaddexp(self, x: Any, y: Any) -> Any: ...
    def erf(self, x: Any) -> Any: ...
    def erfc(self, x: Any) -> Any: ...
    def sin(self, x: Any) -> Any: ...
    def cos(self, x: Any) -> Any: ...
    def tan(self, x: Any) -> Any: ...
    def asin(self, x: Any) -> Any: ...
    def acos(self, x: Any) -> Any: ...
    def atan(self, x: Any) -> Any: ...
    def sinh(self, x: Any) -> Any: ...
    def cosh(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def asinh(self, x: Any) -> Any: ...
    def acosh(self, x: Any) -> Any: ...
    def atanh(self, x: Any) -> Any: ...

    def relu(self, x: Any) -> Any: ...
    def sigmoid(self, x: Any) -> Any: ...
    def softplus(self, x: Any) -> Any: ...


@dataclass(frozen=True)
class Op:
    """A primitive operation.

    Attributes:
        name: its name in the graph.
        aten: the ATen operators it is traced from; none where only other rows and derivatives use it.
        arity: how many values it takes.
        emit: ``emit(target, *args[, number])`` prints it into a target.
        partials: ``partials(out, *args[, number])`` -> one partial derivative per argument, None for 0.
        latex: ``latex(*args[, number])`` from the arguments' LaTeX, already in brackets where needed.
        binds: how strongly its LaTeX holds together: -1 conditions, 0 sums, 1 products, 2 quotients,
            3 powers, 4 atoms.
        costly: worth saving for the backward pass rather than computing again.
        takes_number: it has one number that is fixed when the cell is written.
        boolean: its value is a condition.
        boolean_args: which arguments are conditions.
        commutes: its two arguments may be swapped.
    """

    name: str
    aten: tuple[str, ...]
    arity: int
    emit: Callable[..., Any]
    partials: Callable[..., tuple[Any, ...]]
    latex: Latex
    binds: int = 4
    costly: bool = False
    takes_number: bool = False
    boolean: bool = False
    boolean_args: tuple[int, ...] = ()
    commutes: bool = False


@dataclass(frozen=True)
class Derived:
    """An operation written in terms of others: ``expand(*args, **kwargs)`` as ATen passes them.

    ``expand`` raises LookupError, with the remedy, for what it does not cover.
    """

    name: str
    aten: tuple[str, ...]
    expand: Callable[..., Any]


Row = Op | Derived


def function(name: str, partials: Callable[..., tuple[Any, ...]], latex: Latex, **facts: Any) -> Op:
    """The row of a function that ATen and every target call by the same name."""
    return Op(
        **{
            "name": name,
            "aten": (f"aten.{name}.default",),
            "arity": 1,
            "emit": lambda target, *args: getattr(target, name)(*args),
            "partials": partials,
            "latex": latex,
            "costly": True,
            **facts,
        }
    )


def call(command: str) -> Latex:
    """LaTeX of a function call: a command of TeX's own, or a name."""
    written = command if command.startswith("\\") else rf"\operatorname{{{command}}}"
    return lambda *args: rf"{written}\left({', '.join(args)}\right)"


def apply(op: str, *args: Any, attr: float | None = None) -> Any:
    """A primitive on expressions (`graph.Expr`) and numbers, one of them at least an expression."""
    builder = next(arg.builder for arg in args if hasattr(arg, "builder"))
    return builder.apply(op, *args, attr=attr)


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere.

    The gradient of the branch that is not taken is 0 times that branch's derivative, which must be finite:
    a branch that may overflow is given a harmless argument there.
    """
    return apply("where", condition, x, y)
