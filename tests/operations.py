"""What a user may write for each row of the table of operations, and where it is compared with torch."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F

from versions import TORCH

DTYPES = [torch.float32, torch.float64]
INF, NAN = float("inf"), float("nan")
SPECIAL = [0.0, 0.1, 0.5, 0.7, 1.0, 1.5, 2.5, 3.0, 6.0, 30.0, 1e4, INF]
FEW = [0.0, 0.5, 1.0, 1e4, INF]  # where there are three arguments

# row -> spellings that a user writes, by the number of their arguments.
UNARY = {
    "add": [lambda x: x + 2.5, lambda x: 2.5 + x, lambda x: torch.add(x, x, alpha=3)],
    "sub": [lambda x: x - 2.5, lambda x: torch.sub(x, 1.0, alpha=2)],
    "rsub": [lambda x: 1 - x, lambda x: torch.rsub(x, 2.0, alpha=3)],
    "mul": [lambda x: 3 * x, lambda x: x * x, lambda x: -1 * x, lambda x: x * torch.tensor(3.0)],
    "div": [lambda x: x / 3, lambda x: 2 / (x * x + 1)],
    "neg": [lambda x: -x, torch.negative],
    "abs": [torch.abs, abs],
    "copysign": [lambda x: torch.copysign(x, -2.0)],
    "exp": [torch.exp],
    "exp2": [torch.exp2],
    "expm1": [torch.expm1],
    "log": [torch.log],
    "log1p": [torch.log1p],
    "log2": [torch.log2],
    "log10": [torch.log10],
    "erf": [torch.erf, torch.special.erf],
    "erfc": [torch.erfc],
    "sqrt": [torch.sqrt, lambda x: x**0.5],
    "rsqrt": [torch.rsqrt],
    "power": [lambda x: x**1.75, lambda x: torch.pow(x, -1.7), lambda x: x**-2, lambda x: x**4],
    "pow": [
        lambda x: x**2,
        lambda x: x**3,
        lambda x: x**1,
        lambda x: x**-1,
        lambda x: x**0 * x,
        lambda x: 2**x,
        lambda x: 1.5**x,
    ],
    "square": [torch.square],
    "reciprocal": [lambda x: 1 / x, torch.reciprocal],
    "sin": [torch.sin],
    "cos": [torch.cos],
    "tan": [torch.tan],
    "asin": [torch.asin],
    "acos": [torch.acos],
    "atan": [torch.atan],
    "sinh": [torch.sinh],
    "cosh": [torch.cosh],
    "tanh": [torch.tanh, lambda x: x.tanh()],
    "asinh": [torch.asinh],
    "acosh": [torch.acosh],
    "atanh": [torch.atanh],
    "floor": [torch.floor],
    "ceil": [torch.ceil],
    "round": [torch.round, lambda x: torch.round(x, decimals=2), lambda x: torch.round(x, decimals=-1)],
    "trunc": [torch.trunc, torch.fix],
    "frac": [torch.frac],
    "fmod": [lambda x: torch.fmod(x, 2), lambda x: torch.fmod(x, -0.7), lambda x: torch.fmod(x, torch.tensor(2.5))],
    "remainder": [lambda x: x % 2, lambda x: x % -0.7, lambda x: torch.remainder(x, torch.tensor(2.5))],
    "sign": [torch.sign, torch.sgn],
    "sigmoid": [torch.sigmoid, F.sigmoid],
    "relu": [torch.relu, F.relu],
    "leaky_relu": [F.leaky_relu, lambda x: F.leaky_relu(x, 0.3)],
    "elu": [F.elu, lambda x: F.elu(x, 0.3), F.selu],
    "celu": [F.celu, lambda x: F.celu(x, 0.5)],
    "softplus": [
        F.softplus,
        lambda x: F.softplus(x, beta=2.0),
        lambda x: F.softplus(x, threshold=1.0),
        lambda x: F.softplus(x, 0.5, 3.0),
    ],
    "logsigmoid": [F.logsigmoid],
    "silu": [F.silu],
    "mish": [F.mish],
    "gelu": [F.gelu, lambda x: F.gelu(x, approximate="tanh")],
    "hardtanh": [F.hardtanh, F.relu6],
    "hardsigmoid": [F.hardsigmoid],
    "hardswish": [F.hardswish],
    "hardshrink": [F.hardshrink, lambda x: F.hardshrink(x, 1.5)],
    "softshrink": [F.softshrink, lambda x: F.softshrink(x, 1.5)],
    "threshold": [lambda x: F.threshold(x, 0.5, -3.0)],
    "clamp": [
        lambda x: torch.clamp(x, -1.0, 2.5),
        lambda x: torch.clip(x, -1, 1),
        lambda x: x.clamp(1.0, -1.0),
        lambda x: x.clamp(max=0.7),
        lambda x: x.clamp(min=-0.1),
        lambda x: x.clamp(torch.tensor(-1.0), torch.tensor(2.5)),
    ],
    "clamp_min": [lambda x: torch.clamp_min(x, -1.0)],
    "clamp_max": [lambda x: torch.clamp_max(x, 2.5)],
    "nan_to_num": [lambda x: torch.nan_to_num(x, 3.0, posinf=1.0, neginf=-2.0), lambda x: x.nan_to_num(None, 1, -1)],
    "isnan": [lambda x: torch.where(torch.isnan(x), 2.0, x)],
    "isinf": [lambda x: torch.where(torch.isinf(x), 2.0, x)],
    "isposinf": [lambda x: torch.where(torch.isposinf(x), 2.0, x)],
    "isneginf": [lambda x: torch.where(torch.isneginf(x), 2.0, x)],
    "zeros_like": [lambda x: x + torch.zeros_like(x)],
    "ones_like": [lambda x: x * torch.ones_like(x)],
    "full_like": [lambda x: x * torch.full_like(x, 2.5)],
    "clone": [lambda x: x.clone() * 2],
    "detach": [lambda x: x * x.detach()],
    # No rows: torch writes these with others.
    "softsign": [F.softsign],
    "tanhshrink": [F.tanhshrink],
    "isfinite": [lambda x: torch.where(torch.isfinite(x), x, 2.0)],
    "casts": [lambda x: x.to(x.dtype) + x.type_as(x), lambda x: ((x > 0).type_as(x) + x.bool().float() * 2) * x],
}

BINARY = {
    "add": [torch.add, lambda x, y: ((x > 0) + (y > 0)) * x],
    "sub": [torch.sub],
    "rsub": [torch.rsub],
    "mul": [torch.mul, lambda x, y: ((x > 0) * (y > 0)) * x],
    "div": [torch.div, lambda x, y: x / (y * y + 1)],
    "pow": [torch.pow, lambda x, y: x**y],
    "copysign": [torch.copysign],
    "lerp": [lambda x, y: torch.lerp(x, y, 0.3), lambda x, y: torch.lerp(x, y, 0.75)],
    "logaddexp": [torch.logaddexp],
    "minimum": [torch.minimum, torch.min],
    "maximum": [torch.maximum, torch.max, lambda x, y: torch.maximum(torch.tanh(x), y)],
    "fmin": [torch.fmin],
    "fmax": [torch.fmax],
    "clamp_min": [torch.clamp_min],
    "clamp_max": [torch.clamp_max],
    "masked_fill": [lambda x, y: x.masked_fill(y > 0, 2.0), lambda x, y: x.masked_fill(y > 0, torch.tensor(-1.0))],
    "where": [
        lambda x, y: torch.where(x > 0, x * y, y),
        lambda x, y: torch.where(x > y, 0.0, y),
        lambda x, y: torch.where(x > y, x, 2),
        lambda x, y: y * torch.where(x > y, 1.0, -1.0),
    ],
    "lt": [lambda x, y: torch.where(x < y, x, 2 * y), lambda x, y: torch.where(x < 1, x, y), lambda x, y: (x < y) * x],
    "le": [lambda x, y: torch.where(x <= y, x, 2 * y), lambda x, y: torch.where(x <= 1, x, y)],
    "gt": [
        lambda x, y: torch.where(x > y, x, 2 * y),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: (x > y).to(x.dtype) * x,
    ],
    "ge": [lambda x, y: torch.where(x >= y, x, 2 * y), lambda x, y: torch.where(x >= 1, x, y)],
    "eq": [
        lambda x, y: torch.where(x == y, x, 2 * y),
        lambda x, y: torch.where(x == 0, x, y),
        lambda x, y: torch.where((x < 0) == (y < 0), x, y),
    ],
    "ne": [lambda x, y: torch.where(x != y, x, 2 * y), lambda x, y: torch.where(x != 1, x, y)],
    "logical_and": [lambda x, y: torch.where(torch.logical_and(x, y > 0), x, y)],
    "logical_or": [lambda x, y: torch.where(torch.logical_or(x > 1, y < 0), x, y)],
    "logical_not": [lambda x, y: torch.where(torch.logical_not(x), 2.0, y), lambda x, y: (x > y).logical_not() * x],
    "logical_xor": [lambda x, y: torch.where(torch.logical_xor(x, y > 0), x, y)],
    "bitwise_and": [lambda x, y: torch.where((x > 0) & (y < 1), x, y), lambda x, y: ((x > y) & True) * x],
    "bitwise_or": [lambda x, y: torch.where((x > 0) | (y < 1), x, y), lambda x, y: (False | (x > y)) * x],
    "bitwise_xor": [lambda x, y: torch.where((x > 0) ^ (y < 1), x, y), lambda x, y: ((x > y) ^ True) * x],
    "bitwise_not": [lambda x, y: torch.where(~(x > y), x, y), lambda x, y: (~((x > 0) & ~(y < 1))).to(x.dtype) * y],
}

TERNARY = {
    "lerp": [torch.lerp],
    "addcmul": [torch.addcmul, lambda x, y, z: torch.addcmul(x, y, z, value=-2)],
    "addcdiv": [torch.addcdiv, lambda x, y, z: torch.addcdiv(x, y, z, value=0.5)],
    "clamp": [torch.clamp],
    "where": [lambda x, y, z: torch.where((x > y) | (y > z) & ~(z > x), x * y, z)],
}
TABLES = ((UNARY, 1), (BINARY, 2), (TERNARY, 3))
REFUSED = {"heaviside"}

# Where torch is not compared with, or not to the last:
# Which of two equal zeros is the smaller one is nobody's word; -softplus(-x) has the sign of its minus; and the
# zeros of torch's softshrink have the sign of x in its vector code and none in its scalar code.
SIGN_OF_ZERO_IS_OPEN = {
    "minimum", "maximum", "fmin", "fmax", "clamp", "clamp_min", "clamp_max", "gelu", "hardtanh", "logsigmoid",
    "softshrink",
}  # fmt: skip
# At NaN the value is NaN; the derivative is what a comparison with NaN happens to choose, which in torch also
# depends on whether the number falls into its vector code or its scalar code.
DERIVATIVE_AT_NAN_IS_OPEN = {
    "relu", "elu", "celu", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "clamp",
    "clamp_min", "clamp_max", "minimum", "maximum",
}  # fmt: skip

# What comes back to a number at its bound: until torch 2.13 all of it, as here; from 2.14 on a half, or nothing.
DERIVATIVE_OF_TIES_IS_OPEN = {"fmin", "fmax", "clamp", "clamp_min", "clamp_max"} if TORCH >= (2, 14) else set()
BOUNDS = (-1.0, 1.0, 2.5, 0.7, -0.1)  # those that are spelled above


def open_values(row, leaves):
    """Where torch's value is not what it should be, or depends on the code that it comes from."""
    x = leaves[0]
    if row == "gelu":  # infinity gives NaN in its vector code in float32
        return x == INF
    if row in ("sinh", "cosh"):  # overflow with e^|x|, before the result
        return (x.abs() > (88.0 if x.dtype == torch.float32 else 709.0)) & x.isfinite()
    if row == "hardswish":  # overflows: it multiplies by 6 and divides by 6
        return (x.abs() > torch.finfo(x.dtype).max / 8) & x.isfinite()
    return torch.zeros_like(x, dtype=torch.bool)


def open_derivatives(row, leaves):
    """Where torch's derivative is not what it should be, or a matter of taste."""
    found, x = open_values(row, leaves), leaves[0]
    if row in DERIVATIVE_AT_NAN_IS_OPEN:
        found |= torch.stack(leaves).isnan().any(0)
    if row == "hardsigmoid" and x.dtype == torch.float64:  # its 1/6 is a number of float32
        found |= x.abs() < 3
    if row == "log10":  # ours overflows at denormal numbers, where 1/x does and 1/(x ln 10) does not
        found |= x.abs() < torch.finfo(x.dtype).tiny
    if row == "addcdiv":  # the square of z is too small or too large
        found |= ((leaves[2] * leaves[2]) == 0) | ((leaves[2] * leaves[2]).isinf() & leaves[2].isfinite())
    if row in DERIVATIVE_OF_TIES_IS_OPEN:
        for left, right in combinations([*leaves, *x.new_tensor(BOUNDS)], 2):
            found |= left == right
    if row == "clamp" and len(leaves) == 3:  # between coinciding bounds it goes to neither
        found |= leaves[1] == leaves[2]
    return found


def points(dtype, arity):
    """Every combination of the special numbers, so that ties occur, and random ones."""
    tiny = torch.finfo(dtype).tiny
    sizes = FEW if arity == 3 else [*SPECIAL, tiny]
    special = torch.tensor([*sizes, *(-size for size in sizes), NAN], dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    dense = 3 * torch.randn(400, arity, generator=generator, dtype=torch.float64)
    return torch.cat([torch.cartesian_prod(*[special] * arity).view(-1, arity), dense.to(dtype)]).unbind(-1)


def differs(found, wanted, *, dtype, signed_zeros):
    """Where two tensors are not the same number, NaN or infinity, to rounding."""
    rtol, atol = (2e-6, 2e-6) if dtype == torch.float32 else (1e-12, 1e-12)
    same = torch.isclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if signed_zeros:
        same &= ~((found == 0) & (wanted == 0)) | (found.signbit() == wanted.signbit())
    return ~same
