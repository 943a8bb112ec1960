"""How kernels multiply: numbers as they are, or pairs of numbers rounded to bfloat16.

A *term* of a sum over k is what one multiply-add takes: of each row of ``a`` one number, which goes to every lane, and
one vector of ``w``; or a pair of each, two neighbouring k. A pair takes the place of one float32, so kernels count,
load and store terms as they do numbers, and a sum over k has half as many. Only what lays operands out for a tile
rounds them: packed weights, rows of x and h, panels, and what is derived for a row. A sum over an odd number of k ends
in a pair with 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from recollect.engine.llvm.values import Emitter, Mask, Value, constant


class Numbers:
    """A term is a number of the kernel's dtype.

    Attributes:
        per_term: how many k there are in a term.
    """

    per_term = 1

    def terms(self, count: Value) -> Value:
        """The terms of a sum over so many k."""
        return count

    def numbers(self, terms: Value) -> Value:
        """The k of so many terms."""
        return terms

    def multiply_add(self, e: Emitter, x: Value, y: Value, total: Value) -> Value:
        """``total`` and the products of two vectors of terms."""
        return e.fma(x, y, total)

    def add(self, e: Emitter, total: Value, terms: Value) -> Value:
        """``total`` and the numbers of a vector of terms."""
        return total + terms

    def masks(self, e: Emitter, count: Value) -> list[Mask]:
        """What `load` reads at most: so many numbers."""
        return [e.mask(count)]

    def load(self, e: Emitter, masks: Sequence[Mask], pointer: Value, offset: Value) -> Value:
        """A vector of terms whose k follow on each other in memory."""
        return e.load_masked(masks[0], pointer, offset)

    def load_one(self, e: Emitter, pointer: Value, k: Value, count: Value) -> Value:
        """The term that begins at ``k`` of ``count``."""
        return e.load_one(pointer, k)

    def rows(self, e: Emitter, k: Value, count: Value) -> list[Value]:
        """The rows, of ``count``, of a term that begins at row ``k`` and goes down."""
        return [k]

    def stacked(self, e: Emitter, vectors: Sequence[Value], k: Value, count: Value) -> Value:
        """A vector of such terms, from a vector of each of their rows."""
        return vectors[0]

    def store_masked(self, e: Emitter, value: Value, mask: Mask, pointer: Value, offset: Value) -> None:
        """Store numbers as they are in a row of terms; ``offset`` counts these numbers."""
        e.store_masked(value, mask, pointer, offset)


class Pairs(Numbers):
    """A term is a pair of bfloat16 numbers, with float32 sums; the first of a pair is in the lower half.

    As the instructions have it, conversion rounds to nearest even, a NaN stays one and a denormal number counts as 0;
    the product of the second numbers is added before that of the first.

    Args:
        native: the machine has AVX512-BF16; otherwise its instructions are put together from others, which is no use
            but for tests.
    """

    per_term = 2

    def __init__(self, *, native: bool) -> None:
        self._native = native

    def terms(self, count: Value) -> Value:
        return (count + 1) // 2

    def numbers(self, terms: Value) -> Value:
        return terms * 2

    def multiply_add(self, e: Emitter, x: Value, y: Value, total: Value) -> Value:
        if self._native:
            pairs, name = ir.VectorType(_BFLOAT, 2 * e.lanes), f"llvm.x86.avx512bf16.dpbf16ps.{32 * e.lanes}"
            return e.call_llvm(name, e.vector, total, x.bitcast(pairs), y.bitcast(pairs))
        (x_first, x_second), (y_first, y_second) = _as_numbers(e, x), _as_numbers(e, y)
        return e.fma(x_first, y_first, e.fma(x_second, y_second, total))

    def add(self, e: Emitter, total: Value, terms: Value) -> Value:
        ones = Value(e.builder, constant(e.bits, _ONES)).bitcast(e.vector)
        return self.multiply_add(e, terms, ones, total)

    def masks(self, e: Emitter, count: Value) -> list[Mask]:
        return [e.mask(count), e.mask(count - e.lanes)]

    def load(self, e: Emitter, masks: Sequence[Mask], pointer: Value, offset: Value) -> Value:
        low, high = (
            self.rounded(e, e.load_masked(mask, pointer, offset + part * e.lanes)) for part, mask in enumerate(masks)
        )
        return _shuffled(e, low, high, range(2 * e.lanes))

    def load_one(self, e: Emitter, pointer: Value, k: Value, count: Value) -> Value:
        pairs = self.load(e, self.masks(e, e.least(count - k, e.integer(2))), pointer, k)
        return Value(e.builder, e.builder.extract_element(pairs.ir, ir.Constant(ir.IntType(32), 0)))

    def rows(self, e: Emitter, k: Value, count: Value) -> list[Value]:
        return [k, e.least(k + 1, count - 1)]

    def stacked(self, e: Emitter, vectors: Sequence[Value], k: Value, count: Value) -> Value:
        first, second = (self.rounded(e, vector) for vector in vectors)
        second = e.choose(k + 1 < count, second, Value(e.builder, constant(second.ir.type, 0)))
        return _shuffled(e, first, second, [lane + row * e.lanes for lane in range(e.lanes) for row in range(2)])

    def store_masked(self, e: Emitter, value: Value, mask: Mask, pointer: Value, offset: Value) -> None:
        e.halves().store_masked(self.rounded(e, value), mask, pointer, offset)

    def rounded(self, e: Emitter, value: Value) -> Value:
        """A vector of numbers as bfloat16, in integers of 16 bits; what is that already stays."""
        if not value.is_number:
            return value
        halves = e.halves().vector
        if self._native:
            return Value(e.builder, e.builder.fptrunc(value.ir, ir.VectorType(_BFLOAT, e.lanes))).bitcast(halves)
        bits = value.bitcast(e.bits)
        size = bits & _SIZE
        nearest = bits + (((bits >> 16) & 1) + 0x7FFF)  # carries into what is kept above one half, and at it if odd
        nearest = e.choose(size < _SMALLEST, bits & ~_SIZE, nearest)
        nearest = e.choose(size > _INFINITY, bits | _QUIET, nearest)
        return Value(e.builder, e.builder.trunc((nearest >> 16).ir, halves))


class _BFloat(ir.Type):
    """LLVM's name for a bfloat16, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BFLOAT = _BFloat()
_ONES = 0x3F803F80  # a pair of ones
# In the bits of a float32: all but the sign, the smallest number with all its digits, infinity (NaN is beyond), and
# what a NaN has that is not signalling.
_SIZE, _SMALLEST, _INFINITY, _QUIET = 0x7FFFFFFF, 0x00800000, 0x7F800000, 0x00400000


def _as_numbers(e: Emitter, pairs: Value) -> tuple[Value, Value]:
    """The first and the second numbers of a vector of pairs, as float32."""
    bits = pairs.bitcast(e.bits)
    return (bits << 16).bitcast(e.vector), (bits & ~0xFFFF).bitcast(e.vector)


def _shuffled(e: Emitter, low: Value, high: Value, order: Sequence[int]) -> Value:
    """A vector of terms from two of 16-bit numbers, in that order."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * e.lanes), list(order))
    return Value(e.builder, e.builder.shuffle_vector(low.ir, high.ir, mask)).bitcast(e.vector)


def products_of(bfloat16: str) -> Numbers:
    """The form for `Tiling.bfloat16`."""
    return Pairs(native=bfloat16 == "native") if bfloat16 else Numbers()
