"""Values under construction: LLVM IR that is written like arithmetic.

`Value` wraps an IR value (an integer, a number or a vector of numbers, or a condition) and has Python's
operators; a plain number on either side becomes a constant of the other's type. `Emitter` writes one
function: it loads and stores, and its loops and conditions are ``with`` blocks. Python's own ``for``
is the unroller.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I1, I16, I64, VOID, POINTER = ir.IntType(1), ir.IntType(16), ir.IntType(64), ir.VoidType(), ir.PointerType()
_ELEMENT = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
_BITS = {"float32": ir.IntType(32), "float64": ir.IntType(64)}
SIZE = {"float32": 4, "float64": 8}


class Value:
    """An IR value with Python's operators."""

    __slots__ = ("builder", "ir")
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder, self.ir = builder, value

    @property
    def is_number(self) -> bool:
        """Floating point (or a vector of it), rather than integers or conditions."""
        kind = getattr(self.ir.type, "element", self.ir.type)
        return isinstance(kind, ir.FloatType | ir.DoubleType)

    def like(self, other: Value | float) -> Any:
        """Another operand as IR of this value's type."""
        return other.ir if isinstance(other, Value) else constant(self.ir.type, other)

    def _binary(self, number: str, integer: str, left: Any, right: Any) -> Value:
        # "contract" lets LLVM fuse a product and a sum into one FMA; nothing else is relaxed.
        if self.is_number:
            return Value(self.builder, getattr(self.builder, number)(left, right, flags=("contract",)))
        return Value(self.builder, getattr(self.builder, integer)(left, right))

    def __add__(self, other: Value | float) -> Value:
        return self._binary("fadd", "add", self.ir, self.like(other))

    def __radd__(self, other: float) -> Value:
        return self._binary("fadd", "add", self.like(other), self.ir)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("fsub", "sub", self.ir, self.like(other))

    def __rsub__(self, other: float) -> Value:
        return self._binary("fsub", "sub", self.like(other), self.ir)

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("fmul", "mul", self.ir, self.like(other))

    def __rmul__(self, other: float) -> Value:
        return self._binary("fmul", "mul", self.like(other), self.ir)

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary("fdiv", "sdiv", self.ir, self.like(other))

    def __rtruediv__(self, other: float) -> Value:
        return self._binary("fdiv", "sdiv", self.like(other), self.ir)

    def __floordiv__(self, other: Value | int) -> Value:
        return Value(self.builder, self.builder.sdiv(self.ir, self.like(other)))

    def __and__(self, other: Value | int) -> Value:
        return Value(self.builder, self.builder.and_(self.ir, self.like(other)))

    def __or__(self, other: Value | int) -> Value:
        return Value(self.builder, self.builder.or_(self.ir, self.like(other)))

    def __xor__(self, other: Value | int) -> Value:
        return Value(self.builder, self.builder.xor(self.ir, self.like(other)))

    def __invert__(self) -> Value:
        return Value(self.builder, self.builder.not_(self.ir))

    def __lshift__(self, bits: int) -> Value:
        return Value(self.builder, self.builder.shl(self.ir, self.like(bits)))

    def __rshift__(self, bits: int) -> Value:
        return Value(self.builder, self.builder.lshr(self.ir, self.like(bits)))

    def __neg__(self) -> Value:
        return Value(self.builder, self.builder.fneg(self.ir) if self.is_number else self.builder.neg(self.ir))

    def compare(self, sign: str, other: Value | float) -> Value:
        """A condition; false where either side is NaN, except for ``!=``."""
        if self.is_number:
            make = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
            return Value(self.builder, make(sign, self.ir, self.like(other)))
        return Value(self.builder, self.builder.icmp_signed(sign, self.ir, self.like(other)))

    def __lt__(self, other: Value | float) -> Value:
        return self.compare("<", other)

    def __le__(self, other: Value | float) -> Value:
        return self.compare("<=", other)

    def __gt__(self, other: Value | float) -> Value:
        return self.compare(">", other)

    def __ge__(self, other: Value | float) -> Value:
        return self.compare(">=", other)

    def bitcast(self, kind: Any) -> Value:
        return Value(self.builder, self.builder.bitcast(self.ir, kind))


def constant(kind: Any, value: float) -> ir.Constant:
    """A constant of a type; the same number in every lane of a vector."""
    return Splat(kind, value) if isinstance(kind, ir.VectorType) else ir.Constant(kind, value)


class Splat(ir.Constant):
    """A vector constant that is written once: lane by lane, constants were half of a kernel's text."""

    def __init__(self, kind: ir.VectorType, value: Any) -> None:
        self.type, self.constant = kind, ir.Constant(kind.element, value)

    def _get_reference(self) -> str:
        return f"splat ({self.constant})"


class Emitter:
    """Writes one function.

    Args:
        function: the IR function; the emitter starts at its first block.
        dtype: ``"float32"`` or ``"float64"``, the type of all numbers.
        lanes: numbers in a vector.
    """

    def __init__(self, function: ir.Function, dtype: str, lanes: int) -> None:
        self.function, self.dtype, self.lanes = function, dtype, lanes
        self.module: ir.Module = function.module
        self.element = _ELEMENT[dtype]
        self.vector = ir.VectorType(self.element, lanes)
        self.bits = ir.VectorType(_BITS[dtype], lanes)
        self.size = SIZE[dtype]
        # To store through a mask costs no more than to store with AVX-512, whose vectors have 64 bytes.
        self._masks_are_free = lanes * self.size == 64
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.arguments = [Value(self.builder, argument) for argument in function.args]

    def wide(self, count: int) -> Emitter:
        """This emitter for vectors ``count`` times as long, which LLVM divides among registers, side by side."""
        made = copy.copy(self)
        made.lanes = self.lanes * count
        made.vector, made.bits = ir.VectorType(self.element, made.lanes), ir.VectorType(_BITS[self.dtype], made.lanes)
        return made

    def halves(self) -> Emitter:
        """This emitter for integers of 16 bits in memory, in place of numbers."""
        made = copy.copy(self)
        made.element, made.vector, made.size = I16, ir.VectorType(I16, self.lanes), 2
        return made

    # Integers and control flow -------------------------------------------------------------------

    def integer(self, value: int) -> Value:
        return Value(self.builder, ir.Constant(I64, value))

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """``for i in range(start, stop, step)`` with a positive step."""
        start, stop, step = (v if isinstance(v, Value) else self.integer(v) for v in (start, stop, step))
        before = self.builder.block
        head, body, done = (self.function.append_basic_block(name) for name in ("head", "body", "done"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(I64)
        index.add_incoming(start.ir, before)
        self.builder.cbranch(self.builder.icmp_signed("<", index, stop.ir), body, done)
        self.builder.position_at_end(body)
        yield Value(self.builder, index)
        index.add_incoming(self.builder.add(index, step.ir), self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition:``"""
        with self.builder.if_then(condition.ir):
            yield

    def choose(self, condition: Value, yes: Value, no: Value) -> Value:
        return Value(self.builder, self.builder.select(condition.ir, yes.ir, no.ir))

    def least(self, x: Value, y: Value) -> Value:
        return self.choose(x < y, x, y)

    def most(self, x: Value, y: Value) -> Value:
        return self.choose(x > y, x, y)

    def variable(self, kind: Any, value: Value | None = None) -> Variable:
        """A mutable local; LLVM keeps it in a register."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(kind)
        made = Variable(self, place, kind)
        if value is not None:
            made.set(value)
        return made

    def scratch(self, count: int) -> Value:
        """Room on the stack for ``count`` vectors."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(self.vector, ir.Constant(I64, count))
            place.align = 64  # pyright: ignore[reportAttributeAccessIssue]  (llvmlite declares it None)
        return Value(self.builder, place)

    def call(self, function: Any, *arguments: Value) -> Value:
        return Value(self.builder, self.builder.call(function, [argument.ir for argument in arguments]))

    def call_address(self, address: Value, kind: ir.FunctionType, *arguments: Any) -> Value:
        """Call the function at an address."""
        pointer = self.builder.inttoptr(address.ir, kind.as_pointer())
        return Value(self.builder, self.builder.call(pointer, list(arguments)))

    def intrinsic(self, name: str, kind: Any, *arguments: Any) -> Value:
        """Call an LLVM intrinsic whose name ends in the vector type."""
        return self.call_llvm(f"llvm.{name}.v{self.lanes}f{self.size * 8}", kind, *arguments)

    def call_llvm(self, name: str, kind: Any, *arguments: Any) -> Value:
        """Call an LLVM intrinsic by its whole name; it is declared where it is not yet."""
        values = [argument.ir if isinstance(argument, Value) else argument for argument in arguments]
        known = self.module.globals.get(name)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(kind, [value.type for value in values]), name)
        return Value(self.builder, self.builder.call(known, values))

    # Memory; offsets count numbers, not bytes -----------------------------------------------------

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """The address ``offset`` numbers further on."""
        if isinstance(offset, int) and not offset:
            return pointer
        offset = offset if isinstance(offset, Value) else self.integer(offset)
        return Value(self.builder, self.builder.gep(pointer.ir, [offset.ir], source_etype=self.element))

    def load(self, pointer: Value, offset: Value | int = 0) -> Value:
        """A vector."""
        return Value(self.builder, self.builder.load(self.at(pointer, offset).ir, align=self.size, typ=self.vector))

    def store(self, value: Value, pointer: Value, offset: Value | int = 0) -> None:
        """Store a vector."""
        self.builder.store(value.ir, self.at(pointer, offset).ir, align=self.size)

    def store_past_caches(self, value: Value, pointer: Value, offset: Value) -> None:
        """Store a vector that nobody reads soon where a vector of its size begins; a fence must follow."""
        at = self.at(pointer, offset).ir
        store = self.builder.store(value.ir, at, align=self.lanes * self.size)
        store.set_metadata("nontemporal", self.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))

    def prefetch(self, pointer: Value, offset: Value | int = 0, *, write: bool = False, later: bool = False) -> None:
        """Fetch the cache line of a number that will soon be read, or written, or ``later``; no address is wrong."""
        # To read or to write, into the nearest cache or the second one, of data.
        how = [ir.Constant(ir.IntType(32), number) for number in (int(write), 2 if later else 3, 1)]
        self.call_llvm("llvm.prefetch.p0", VOID, self.at(pointer, offset), *how)

    def load_one(self, pointer: Value, offset: Value | int = 0) -> Value:
        return Value(self.builder, self.builder.load(self.at(pointer, offset).ir, align=self.size, typ=self.element))

    def store_one(self, value: Value, pointer: Value, offset: Value | int = 0) -> None:
        self.builder.store(value.ir, self.at(pointer, offset).ir, align=self.size)

    def integer_at(self, pointer: Value, index: Value | int) -> Value:
        """The address of an integer, ``index`` integers further on."""
        index = index if isinstance(index, Value) else self.integer(index)
        return Value(self.builder, self.builder.gep(pointer.ir, [index.ir], source_etype=I64))

    def load_integer(self, pointer: Value, index: Value | int) -> Value:
        return Value(self.builder, self.builder.load(self.integer_at(pointer, index).ir, typ=I64))

    def store_integer(self, value: Value, pointer: Value, index: Value | int) -> None:
        self.builder.store(value.ir, self.integer_at(pointer, index).ir)

    def load_acquired(self, pointer: Value) -> Value:
        """An integer that another thread changes, and with it all that this thread had written before."""
        return Value(self.builder, self.builder.load_atomic(pointer.ir, "acquire", 8, typ=I64))

    def splat(self, value: Value) -> Value:
        """One number, or integer, in every lane."""
        nothing = Splat(ir.VectorType(value.ir.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, value.ir, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return Value(self.builder, self.builder.shuffle_vector(first, nothing, zeros))

    def transposed(self, rows: list[Value]) -> list[Value]:
        """As many vectors as they have lanes, with rows and columns exchanged.

        Each round interleaves the first half of the rows with the second; log2(lanes) rounds transpose.
        """
        half = self.lanes // 2

        def interleaved(x: Value, y: Value, start: int) -> Value:
            order = [start + i // 2 + (i % 2) * self.lanes for i in range(self.lanes)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), order)
            return Value(self.builder, self.builder.shuffle_vector(x.ir, y.ir, mask))

        for _ in range(self.lanes.bit_length() - 1):
            rows = [interleaved(rows[i], rows[i + half], start) for i in range(half) for start in (0, half)]
        return rows

    def zeros(self) -> Value:
        return Value(self.builder, constant(self.vector, 0.0))

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x * y + z, fused where the machine can."""
        return self.intrinsic("fmuladd", self.vector, x, y, z)

    def mask(self, count: Value) -> Mask:
        """A condition that holds in the first ``count`` lanes."""
        # Compared in integers as wide as the numbers, which take no conversion; nothing has 2^31 columns.
        bits = self.bits.element
        narrow = count if bits == I64 else Value(self.builder, self.builder.trunc(count.ir, bits))
        return Mask(self.builder, (self.lane_numbers(bits) < self.splat(narrow)).ir, count >= self.lanes)

    def lane_numbers(self, kind: ir.IntType = I64) -> Value:
        """The integers 0, 1, 2, ... in the lanes."""
        return Value(self.builder, ir.Constant(ir.VectorType(kind, self.lanes), list(range(self.lanes))))

    def store_masked(self, value: Value, mask: Mask, pointer: Value, offset: Value | int) -> None:
        """Store the lanes where ``mask`` holds; the others' memory is not touched."""
        self.store_column([value], mask, pointer, [offset])

    def store_column(self, values: Sequence[Value], mask: Mask, pointer: Value, offsets: Sequence[Value | int]) -> None:
        """The same for vectors that share a mask."""
        stores = [(value, self.at(pointer, offset)) for value, offset in zip(values, offsets, strict=True)]
        if self._masks_are_free:
            for value, place in stores:
                self._masked("store", VOID, value, place, self._alignment, mask)
            return
        # AVX2's masked store takes a dozen cycles, and most vectors are whole.
        with self.builder.if_else(mask.whole.ir) as (whole, part):
            with whole:
                for value, place in stores:
                    self.store(value, place)
            with part:
                for value, place in stores:
                    self._masked("store", VOID, value, place, self._alignment, mask)

    def load_masked(self, mask: Value, pointer: Value, offset: Value | int) -> Value:
        """Load the lanes where ``mask`` holds, 0 in the others."""
        nothing = constant(self.vector, 0.0)
        return self._masked("load", self.vector, self.at(pointer, offset), self._alignment, mask, nothing)

    def _masked(self, what: str, kind: Any, *arguments: Any) -> Value:
        kind_of_number = "i" if self.element is I16 else "f"
        return self.call_llvm(f"llvm.masked.{what}.v{self.lanes}{kind_of_number}{self.size * 8}.p0", kind, *arguments)

    @property
    def _alignment(self) -> ir.Constant:
        """The alignment of one number, in bytes.

        LLVM 20 wants it as an operand beside a mask; LLVM 22, which does not, still reads it.
        """
        return ir.Constant(ir.IntType(32), self.size)


class Mask(Value):
    """A condition for each lane, with ``whole``: whether it holds in all."""

    __slots__ = ("whole",)

    def __init__(self, builder: ir.IRBuilder, value: Any, whole: Value) -> None:
        super().__init__(builder, value)
        self.whole = whole


class Variable:
    """A mutable local of an `Emitter`."""

    def __init__(self, emitter: Emitter, place: Any, kind: Any) -> None:
        self._emitter, self._place, self._kind = emitter, place, kind

    def get(self) -> Value:
        builder = self._emitter.builder
        return Value(builder, builder.load(self._place, typ=self._kind))

    def set(self, value: Value) -> None:
        self._emitter.builder.store(value.ir, self._place)
