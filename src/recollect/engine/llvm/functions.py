"""exp, log, tanh and their relatives in vector arithmetic: the target that rows are printed into.

All are branch-free. The exponential splits x = n ln 2 + r with \\|r\\| <= ln(2)/2 and evaluates a polynomial
in r; the logarithm splits off the exponent and sums the series of 2 artanh. Absolute errors against
torch are below 3e-7 in float32 and 1e-14 in float64 (tests/engine/test_functions.py).
"""

from __future__ import annotations

import math
from typing import Any

from recollect.engine.llvm.values import Emitter, Value, constant

# (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, lowest power first. float32: the minimax coefficients of S. Moshier's
# Cephes library (expf); float64: the Taylor series, whose remainder is below 2e-16 there.
_EXP = {
    "float32": (
        5.0000001201e-1,
        1.6666665459e-1,
        4.1665795894e-2,
        8.3334519073e-3,
        1.3981999507e-3,
        1.9875691500e-4,
    ),
    "float64": tuple(1.0 / math.factorial(k) for k in range(2, 14)),
}
# ln 2 in two parts: the first has trailing zeros, so that n * high is exact.
_LN2 = {
    "float32": (0.693359375, -2.12194440e-4),
    "float64": (6.93147180369123816490e-1, 1.90821492927058770002e-10),
}
# Adding and subtracting this number rounds to a whole number and leaves it in the low bits.
_ROUND = {"float32": 1.5 * 2.0**23, "float64": 1.5 * 2.0**52}
_MANTISSA = {"float32": 23, "float64": 52}
_BIAS = {"float32": 127, "float64": 1023}
# exp overflows beyond the second and is 0 (or denormal, which counts as 0) before the first.
_EXP_RANGE = {"float32": (-87.0, 88.7228391), "float64": (-708.0, 709.782712893384)}
# tanh is 1 to the last bit beyond.
_TANH_LIMIT = {"float32": 10.0, "float64": 20.0}
# Terms of artanh's series for arguments up to (sqrt 2 - 1)/(sqrt 2 + 1) and up to 1/3.
_LOG_TERMS = {"float32": 5, "float64": 11}
_LOG1P_TERMS = {"float32": 8, "float64": 17}
_LN2_WHOLE = math.log(2.0)


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

    def minimum(self, x: Value, y: Value) -> Value:
        # As torch: a NaN on either side is the result.
        return self.where(self._not_nan(x), self.where(x < y, x, y), x)

    def maximum(self, x: Value, y: Value) -> Value:
        return self.where(self._not_nan(x), self.where(x > y, x, y), x)

    def relu(self, x: Value) -> Value:
        return self.where(x <= 0.0, self.const(0.0), x)

    def abs(self, x: Value) -> Value:
        return self._e.intrinsic("fabs", self._e.vector, x)

    def detach(self, x: Value) -> Value:
        return x

    def sqrt(self, x: Value) -> Value:
        return self._e.intrinsic("sqrt", self._e.vector, x)

    # From the C library, lane by lane: right everywhere, not fast.

    def sin(self, x: Value) -> Value:
        return self._e.intrinsic("sin", self._e.vector, x)

    def cos(self, x: Value) -> Value:
        return self._e.intrinsic("cos", self._e.vector, x)

    def power(self, x: Value, exponent: float) -> Value:
        return self._e.intrinsic("pow", self._e.vector, x, self.const(exponent))

    # Exponentials ---------------------------------------------------------------------------------

    def exp(self, x: Value) -> Value:
        low, high = _EXP_RANGE[self._dtype]
        r_part, scale = self._split_exp(self._clamp(x, low, high), halve=True)
        value = (r_part + 1.0) * scale * 2.0
        value = self.where(x > high, self.const(math.inf), value)
        return self.where(x < low, self.const(0.0), value)

    def sigmoid(self, x: Value) -> Value:
        # At the upper bound 2^n is infinite, so that the result is 0 as it should be.
        low, high = _EXP_RANGE[self._dtype]
        r_part, scale = self._split_exp(self._clamp(-x, low, high + 0.2), halve=False)
        return 1.0 / ((r_part + 1.0) * scale + 1.0)

    def tanh(self, x: Value) -> Value:
        # (e^2x - 1) / (e^2x + 1), through e^2x - 1 itself, which keeps small x exact.
        limit = _TANH_LIMIT[self._dtype]
        r_part, scale = self._split_exp(self._clamp(x, -limit, limit) * 2.0, halve=False)
        less_one = self._e.fma(r_part, scale, scale - 1.0)
        return less_one / (less_one + 2.0)

    def softplus(self, x: Value) -> Value:
        # max(x, 0) + ln(1 + e^-|x|), and ln(1 + u) = 2 artanh(u / (2 + u)).
        u = self.exp(-self.abs(x))
        return self.maximum(x, self.const(0.0)) + self._twice_artanh(u / (u + 2.0), _LOG1P_TERMS[self._dtype])

    def log(self, x: Value) -> Value:
        bits, bias = _MANTISSA[self._dtype], _BIAS[self._dtype]
        smallest = 2.0 ** (1 - bias)
        denormal = x < smallest
        lifted = self.where(denormal, x * 2.0**bits, x)
        raw = lifted.bitcast(self._e.bits)
        exponent = (raw >> bits) - bias
        mantissa = ((raw & ((1 << bits) - 1)) | (bias << bits)).bitcast(self._e.vector)
        large = mantissa > math.sqrt(2.0)
        mantissa = self.where(large, mantissa * 0.5, mantissa)
        number = Value(self._e.builder, self._e.builder.sitofp(exponent.ir, self._e.vector))
        number = self.where(large, number + 1.0, number)
        number = self.where(denormal, number - float(bits), number)
        s = (mantissa - 1.0) / (mantissa + 1.0)
        value = number * _LN2_WHOLE + self._twice_artanh(s, _LOG_TERMS[self._dtype])
        value = self.where(self.equal(x, self.const(math.inf)), x, value)
        value = self.where(self.equal(x, self.const(0.0)), self.const(-math.inf), value)
        return self.where(x >= 0.0, value, self.const(math.nan))

    # Parts ----------------------------------------------------------------------------------------

    def _not_nan(self, x: Value) -> Value:
        return x.compare("==", x)

    def _clamp(self, x: Value, low: float, high: float) -> Value:
        # In this form a NaN passes through.
        x = self.where(x < low, self.const(low), x)
        return self.where(x > high, self.const(high), x)

    def _split_exp(self, x: Value, *, halve: bool) -> tuple[Value, Value]:
        """``(e^r - 1, 2^n)`` with x = n ln 2 + r; with ``halve`` 2^(n-1), whose exponent never overflows."""
        magic = _ROUND[self._dtype]
        shifted = self._e.fma(x, self.const(1.0 / _LN2_WHOLE), self.const(magic))
        n = shifted - magic
        high, low = _LN2[self._dtype]
        r = self._e.fma(n, self.const(-low), self._e.fma(n, self.const(-high), x))
        coefficients = _EXP[self._dtype]
        polynomial = self.const(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            polynomial = self._e.fma(polynomial, r, self.const(coefficient))
        r_part = self._e.fma(polynomial * r, r, r)
        mantissa = _MANTISSA[self._dtype]
        bias = _BIAS[self._dtype] - (1 if halve else 0)
        scale = ((shifted.bitcast(self._e.bits) + bias) << mantissa).bitcast(self._e.vector)
        return r_part, scale

    def _twice_artanh(self, s: Value, terms: int) -> Value:
        """2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...)."""
        square = s * s
        total: Any = self.const(2.0 / (2 * terms - 1))
        for k in reversed(range(terms - 1)):
            total = self._e.fma(total, square, self.const(2.0 / (2 * k + 1)))
        return total * s
