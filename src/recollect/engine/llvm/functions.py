"""The functions of the rows in vector arithmetic: the target that rows are printed into.

All are branch-free. The exponential splits x = n ln 2 + r with \\|r\\| <= ln(2)/2 and evaluates a polynomial
in r; the logarithm splits off the exponent and sums the series of 2 artanh; the others are made of these and
of polynomials of their own (`polynomials.py`). Errors are below 3 units in the last place, relative to the
result however small it is (tests/engine/test_functions.py); softplus and what is built on it have an absolute
error of that size. Where a machine has no fused multiply-add, erfc loses digits as it vanishes: 30 units at 8.
"""

from __future__ import annotations

import math
from typing import Any

from recollect.engine.llvm import polynomials as p
from recollect.engine.llvm.values import Emitter, Value, constant


class VectorTarget:
    """Prints graph operations as vector instructions of one `Emitter`."""

    def __init__(self, emitter: Emitter) -> None:
        self._e = emitter
        self._dtype = emitter.dtype

    def const(self, value: float) -> Value:
        return Value(self._e.builder, constant(self._e.vector, float(value)))

    # Selection ------------------------------------------------------------------------------------

    def where(self, c: Value, x: Value, y: Value) -> Value:
        return self._e.choose(c, x, y)

    def equal(self, x: Value, y: Value) -> Value:
        return x.compare("==", y)

    def not_equal(self, x: Value, y: Value) -> Value:
        return x.compare("!=", y)

    def logical_and(self, c: Value, d: Value) -> Value:
        return c & d

    def logical_or(self, c: Value, d: Value) -> Value:
        return c | d

    def logical_not(self, c: Value) -> Value:
        return Value(self._e.builder, self._e.builder.not_(c.ir))

    def minimum(self, x: Value, y: Value) -> Value:
        # As torch: a NaN on either side is the result.
        return self.where(self._not_nan(x), self.where(x < y, x, y), x)

    def maximum(self, x: Value, y: Value) -> Value:
        return self.where(self._not_nan(x), self.where(x > y, x, y), x)

    def relu(self, x: Value) -> Value:
        return self.where(x < 0.0, self.const(0.0), x)

    def detach(self, x: Value) -> Value:
        return x

    # Single instructions on most machines ---------------------------------------------------------

    def abs(self, x: Value) -> Value:
        return self._e.intrinsic("fabs", self._e.vector, x)

    def copysign(self, x: Value, y: Value) -> Value:
        return self._e.intrinsic("copysign", self._e.vector, x, y)

    def sqrt(self, x: Value) -> Value:
        return self._e.intrinsic("sqrt", self._e.vector, x)

    def floor(self, x: Value) -> Value:
        return self._e.intrinsic("floor", self._e.vector, x)

    def round(self, x: Value) -> Value:
        return self._e.intrinsic("nearbyint", self._e.vector, x)

    # From the C library, lane by lane: right everywhere, not fast. ----------------------------------

    def sin(self, x: Value) -> Value:
        return self._e.intrinsic("sin", self._e.vector, x)

    def cos(self, x: Value) -> Value:
        return self._e.intrinsic("cos", self._e.vector, x)

    def tan(self, x: Value) -> Value:
        return self._e.intrinsic("tan", self._e.vector, x)

    def power(self, x: Value, exponent: float) -> Value:
        return self.pow(x, self.const(exponent))

    def pow(self, x: Value, y: Value) -> Value:
        # The C library looks at bits, in which a denormal number is not 0.
        return self._e.intrinsic("pow", self._e.vector, self._without_denormals(x), self._without_denormals(y))

    def fmod(self, x: Value, divisor: float) -> Value:
        return Value(self._e.builder, self._e.builder.frem(x.ir, self.const(divisor).ir))

    # Exponentials ---------------------------------------------------------------------------------

    def exp(self, x: Value) -> Value:
        low, high = p.EXP_RANGE[self._dtype]
        r, scale = self._split_exp(self._clamp(x, low, high), halvings=1)
        value = self._exp_part(r) * scale * 2.0
        value = self.where(x > high, self.const(math.inf), value)
        return self.where(x < low, self.const(0.0), value)

    def exp2(self, x: Value) -> Value:
        low, high = p.EXP2_RANGE[self._dtype]
        bounded = self._clamp(x, low, high)
        n, scale = self._power_of_two(bounded, 1.0, halvings=1)
        value = self._exp_part((bounded - n) * p.LN2) * scale * 2.0
        value = self.where(x >= high, self.const(math.inf), value)
        return self.where(x < low, self.const(0.0), value)

    def expm1(self, x: Value) -> Value:
        # Below the lower bound it is -1; a half of it never overflows before the whole does.
        low, high = p.EXP_RANGE[self._dtype]
        r, scale = self._split_exp(self._clamp(x, low, high), halvings=1)
        value = self._e.fma(self._expm1_part(r), scale, scale - 0.5) * 2.0
        return self.copysign(self.where(x > high, self.const(math.inf), value), x)

    def sigmoid(self, x: Value) -> Value:
        # At the upper bound 2^n is infinite, so that the result is 0 as it should be.
        low, high = p.EXP_RANGE[self._dtype]
        r, scale = self._split_exp(self._clamp(x, -high - 0.2, -low), -1.0)
        return 1.0 / self._e.fma(self._exp_part(r, -1.0), scale, self.const(1.0))

    def tanh(self, x: Value) -> Value:
        # With w = (e^2x - 1)/2, which keeps small x exact: w / (w + 1). 2x is n ln 2 + 2r, and one part of ln 2 is
        # enough: with an n so large that its error counts, tanh is 1 to the last bit.
        limit = p.TANH_LIMIT[self._dtype]
        x = self._clamp(x, -limit, limit)
        n, scale = self._power_of_two(x, 2.0 / p.LN2)
        r = self._e.fma(n, self.const(-0.5 * p.LN2), x)
        # 0.5 - 0.5 * scale is +0 at n = 0, so that w has the sign of x also where x is 0.
        w = self._e.fma(self._expm1_part(r, 2.0), scale, -self._e.fma(scale, self.const(-0.5), self.const(0.5)))
        return w / (w + 1.0)

    def sinh(self, x: Value) -> Value:
        # With u = e^|x| - 1: (u + u/(u + 1)) / 2. A quarter of u stays finite as long as the result does.
        size, limit = self.abs(x), p.SINH_LIMIT[self._dtype]
        r, scale = self._split_exp(self._at_most(size, limit), halvings=2)
        quarter = self._e.fma(self._expm1_part(r), scale, scale - 0.25)
        value = (quarter + quarter / (quarter * 4.0 + 1.0)) * 2.0
        return self.copysign(self.where(size > limit, self.const(math.inf), value), x)

    def cosh(self, x: Value) -> Value:
        size, limit = self.abs(x), p.SINH_LIMIT[self._dtype]
        r, scale = self._split_exp(self._at_most(size, limit), halvings=2)
        quarter = self._exp_part(r) * scale
        value = quarter * 2.0 + 0.125 / quarter
        return self.where(size > limit, self.const(math.inf), value)

    def softplus(self, x: Value) -> Value:
        return self.maximum(x, self.const(0.0)) + self._softplus_of_minus(self.abs(x))

    def logaddexp(self, x: Value, y: Value) -> Value:
        value = self.maximum(x, y) + self._softplus_of_minus(self.abs(x - y))
        return self.where(self.equal(x, y), x + p.LN2, value)  # infinities have no difference

    # Logarithms -----------------------------------------------------------------------------------

    def log(self, x: Value) -> Value:
        exponent, mantissa = self._split_float(x)
        value = self._log_of_parts(exponent, mantissa - 1.0)
        value = self.where(self.equal(x, self.const(math.inf)), x, value)
        value = self.where(x < p.SMALLEST[self._dtype], self.const(-math.inf), value)  # denormals count as 0
        return self.where(x >= 0.0, value, self.const(math.nan))

    def log1p(self, x: Value) -> Value:
        # x + 1 = 2^n m only gives n; m - 1 = 2^-n x + (2^-n - 1) keeps the digits of x that x + 1 has lost.
        exponent, mantissa = self._split_float(x + 1.0)
        scale = ((p.BIAS[self._dtype] - exponent) << p.MANTISSA[self._dtype]).bitcast(self._e.vector)
        less_one = self._e.fma(x, scale, scale - 1.0)
        less_one = self.where(x > p.LARGE[self._dtype], mantissa - 1.0, less_one)
        value = self._log_of_parts(exponent, less_one)
        value = self.where(self.equal(x, self.const(math.inf)), x, value)
        value = self.where(self.equal(x, self.const(-1.0)), self.const(-math.inf), value)
        return self.where(x >= -1.0, self.copysign(value, x), self.const(math.nan))

    def asinh(self, x: Value) -> Value:
        size = self.abs(x)
        square = size * size
        value = self._log1p_and_ln2(size, size + square / (self.sqrt(square + 1.0) + 1.0))
        return self.copysign(value, x)

    def acosh(self, x: Value) -> Value:
        above = x - 1.0
        value = self._log1p_and_ln2(x, above + self.sqrt(above * (x + 1.0)))
        return self.where(x >= 1.0, value, self.const(math.nan))

    def atanh(self, x: Value) -> Value:
        size = self.abs(x)
        return self.copysign(self.log1p(size * 2.0 / (1.0 - size)) * 0.5, x)

    # Circular functions ---------------------------------------------------------------------------

    def atan(self, x: Value) -> Value:
        # Between pi/8 and 3 pi/8 the angle is measured from pi/4, beyond from pi/2.
        size = self.abs(x)
        middle, steep = size > math.tan(math.pi / 8), size > math.tan(3 * math.pi / 8)
        above = self.where(steep, self.const(-1.0), self.where(middle, size - 1.0, size))
        below = self.where(steep, size, self.where(middle, size + 1.0, self.const(1.0)))
        start = self.where(middle, self.const(math.pi / 4), self.const(0.0))
        start = self.where(steep, self.const(math.pi / 2), start)
        t = above / below
        square = t * t
        return self.copysign(start + self._e.fma(self._polynomial(p.ATAN, square) * square, t, t), x)

    def asin(self, x: Value) -> Value:
        return self.atan(x / self.sqrt((1.0 - x) * (x + 1.0)))

    def acos(self, x: Value) -> Value:
        return self.atan(self.sqrt((1.0 - x) / (x + 1.0))) * 2.0

    # The error function ---------------------------------------------------------------------------

    def erf(self, x: Value) -> Value:
        size = self.abs(x)
        value = self.where(size < 0.5, self._erf_of_small(size), 1.0 - self._erfc_of_large(size))
        return self.copysign(value, x)

    def erfc(self, x: Value) -> Value:
        size = self.abs(x)
        large = self._erfc_of_large(size)
        large = self.where(x < 0.0, 2.0 - large, large)
        return self.where(size < 0.5, 1.0 - self._erf_of_small(x), large)

    def _erf_of_small(self, x: Value) -> Value:
        return self._e.fma(self._polynomial(p.ERF, x * x), x, x)

    def _erfc_of_large(self, x: Value) -> Value:
        x = self._at_most(x, p.ERFC_LIMIT[self._dtype])
        inverse = 1.0 / (x + p.ERFC_POLE)
        square = x * x
        lost = self._e.fma(x, x, -square)  # what rounding took from the square: e^-lost is 1 - lost
        bell = self.exp(-square)
        bell = bell - bell * lost
        return self._polynomial(p.ERFC, (x - p.ERFC_POLE) * inverse) * inverse * bell

    # Parts ----------------------------------------------------------------------------------------

    def _without_denormals(self, x: Value) -> Value:
        zero = self.copysign(self.const(0.0), x)
        return self.where(self.abs(x) < p.SMALLEST[self._dtype], zero, x)

    def _not_nan(self, x: Value) -> Value:
        return x.compare("==", x)

    def _at_most(self, x: Value, high: float) -> Value:
        # In this form a NaN passes through.
        return self.where(x > high, self.const(high), x)

    def _clamp(self, x: Value, low: float, high: float) -> Value:
        return self._at_most(self.where(x < low, self.const(low), x), high)

    def _polynomial(self, table: dict[str, tuple[float, ...]], x: Value) -> Value:
        *lower, highest = table[self._dtype]
        total = self.const(highest)
        for coefficient in reversed(lower):
            total = self._e.fma(total, x, self.const(coefficient))
        return total

    def _split_exp(self, x: Value, sign: float = 1.0, halvings: int = 0) -> tuple[Value, Value]:
        """``(r, 2^n)`` with x = sign * n ln 2 + r; halvings of 2^n keep its exponent from overflowing."""
        n, scale = self._power_of_two(x, sign / p.LN2, halvings)
        high, low = (self.const(-sign * part) for part in p.LN2_PARTS[self._dtype])
        return self._e.fma(n, low, self._e.fma(n, high, x)), scale

    def _power_of_two(self, x: Value, factor: float, halvings: int = 0) -> tuple[Value, Value]:
        """``(n, 2^n)`` with n the whole number next to x * factor; 2^n is halved so many times."""
        # The sum has n and the bias of the exponent in its low bits, from where they move to those of the exponent.
        magic = p.ROUND[self._dtype] + p.BIAS[self._dtype] - halvings
        shifted = self._e.fma(x, self.const(factor), self.const(magic))
        scale = (shifted.bitcast(self._e.bits) << p.MANTISSA[self._dtype]).bitcast(self._e.vector)
        return shifted - magic, scale

    # For |factor * r| <= ln(2)/2, of the factors in the table:

    def _exp_part(self, r: Value, factor: float = 1.0) -> Value:
        """e^(factor * r)."""
        return self._e.fma(self._expm1_quotient(r, factor), r * factor, self.const(1.0))

    def _expm1_part(self, r: Value, factor: float = 1.0) -> Value:
        """(e^(factor * r) - 1) / factor, with the sign of r."""
        return self._expm1_quotient(r, factor) * r

    def _expm1_quotient(self, r: Value, factor: float) -> Value:
        """(e^(factor * r) - 1) / (factor * r)."""
        return self._e.fma(self._polynomial(p.EXP[factor], r), r, self.const(1.0))

    def _split_float(self, x: Value) -> tuple[Value, Value]:
        """``(n, m)`` with x = 2^n m, n an integer and sqrt(1/2) <= m <= sqrt(2), for positive normal numbers."""
        bits, bias = p.MANTISSA[self._dtype], p.BIAS[self._dtype]
        raw = x.bitcast(self._e.bits)
        exponent = (raw >> bits) - bias
        mantissa = ((raw & ((1 << bits) - 1)) | (bias << bits)).bitcast(self._e.vector)
        large = mantissa > math.sqrt(2.0)
        return self.where(large, exponent + 1, exponent), self.where(large, mantissa * 0.5, mantissa)

    def _log_of_parts(self, exponent: Value, less_one: Value) -> Value:
        """ln(2^n m) from n and m - 1: with s = (m - 1)/(m + 1), ln m is 2 artanh(s)."""
        number = Value(self._e.builder, self._e.builder.sitofp(exponent.ir, self._e.vector))
        return number * p.LN2 + self._twice_artanh(less_one / (less_one + 2.0), p.LOG_TERMS[self._dtype])

    def _log1p_and_ln2(self, x: Value, less_one: Value) -> Value:
        """log1p of the second, or ln 2x where x is so large that its square may overflow."""
        large = x > p.LARGE[self._dtype]
        value = self.log1p(self.where(large, x, less_one))
        return self.where(large, value + p.LN2, value)

    def _softplus_of_minus(self, x: Value) -> Value:
        """ln(1 + e^-x) for x >= 0: with u = e^-x it is 2 artanh(u/(u + 2))."""
        u = self.exp(-x)
        return self._twice_artanh(u / (u + 2.0), p.SOFTPLUS_TERMS[self._dtype])

    def _twice_artanh(self, s: Value, terms: int) -> Value:
        """2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...)."""
        square = s * s
        total: Any = self.const(2.0 / (2 * terms - 1))
        for k in reversed(range(terms - 1)):
            total = self._e.fma(total, square, self.const(2.0 / (2 * k + 1)))
        return total * s
