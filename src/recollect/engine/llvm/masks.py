"""The kernel that draws masks: numbers that are a value with some probability, and 0 otherwise.

    for each group of 8 blocks of this thread's:
        the 4 words of each block, by Philox, from the block's number and the mask's under the key
        for each word: 8 numbers: the value where word < threshold, else 0

Philox4x32-10 counts where other generators remember (J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel
random numbers: as easy as 1, 2, 3", SC 2011): a number depends on the key, the mask and its own place alone, so that
threads share a mask as they like. With 7 rounds it passes TestU01's BigCrush there; 10 are the authors' margin. With
AVX2 a number takes 0.65 ns, and by Threefry4x32-12, which has no products, 0.87.

Number n of a mask is word n % 32 // 8 of block n // 32 * 8 + n % 8, on every machine: vectors are of 8 lanes, which
LLVM divides among the registers that there are, and words come out of them in this order without a shuffle.
"""

from __future__ import annotations

from llvmlite import ir

from recollect.engine.llvm.kernel import COMMON, Kernel
from recollect.engine.llvm.tiling import without_tiles
from recollect.engine.llvm.values import Emitter, Value

# ``out`` is the mask's address and ``count`` its numbers; ``threshold`` is of 2^32, ``value`` the bits of a float64.
ARGUMENTS = ("out", "count", "key", "mask", "threshold", "value")
SLOTS = (*COMMON, *ARGUMENTS)

_LANES, _WORDS = 8, 4
_GROUP = _LANES * _WORDS
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85  # the golden ratio and sqrt(3) - 1, by which the key's words grow from round to round
_WORD = (1 << 32) - 1
_ALONE = 1 << 16  # numbers that are drawn in about the time that it takes to wake a thread


def write(dtype: str) -> Kernel:
    """Write the kernel, the same for every machine."""
    kernel = Kernel(without_tiles(dtype, _LANES), ARGUMENTS)
    draw = _write_draw(kernel)
    e = kernel.entry("masks")
    few = kernel.slot(e, "count") < _ALONE
    kernel.run(e, draw, e.choose(few, e.integer(1), kernel.slot(e, "threads")))
    e.builder.ret_void()
    return kernel


def _write_draw(kernel: Kernel) -> Emitter:
    e = kernel.stage("draw")
    _, thread, threads = e.arguments
    out, count, key = kernel.pointer(e, "out"), kernel.slot(e, "count"), kernel.slot(e, "key")
    mask, threshold = e.splat(kernel.slot(e, "mask")), e.splat(kernel.slot(e, "threshold"))
    value, spare = e.splat(_number(e, kernel.slot(e, "value"))), e.scratch(_WORDS)
    keys = [(e.splat(key + turn * _WEYL[0]), e.splat((key >> 32) + turn * _WEYL[1])) for turn in range(_ROUNDS)]
    groups = (count + (_GROUP - 1)) // _GROUP
    with e.loop(groups * thread // threads, groups * (thread + 1) // threads) as group:
        first = group * _GROUP
        left = count - first
        place = e.choose(left < _GROUP, spare, e.at(out, first))
        for at, word in enumerate(_philox(e.splat(group * _LANES) + e.lane_numbers(), mask, keys)):
            e.store(e.choose((word & _WORD) < threshold, value, e.zeros()), place, at * _LANES)
        with e.when(left < _GROUP), e.loop(0, left) as number:
            e.store_one(e.load_one(spare, number), out, first + number)
    e.builder.ret_void()
    return e


def _number(e: Emitter, bits: Value) -> Value:
    number = bits.bitcast(ir.DoubleType())
    return number if e.dtype == "float64" else Value(e.builder, e.builder.fptrunc(number.ir, e.element))


def _philox(block: Value, mask: Value, keys: list[tuple[Value, Value]]) -> tuple[Value, Value, Value, Value]:
    """The words of blocks, in the lower halves of 64 bits: the upper ones, where products grow, mean nothing."""
    a, b, c, d = block, block >> 32, mask, mask & 0
    for key_a, key_c in keys:
        of_a, of_c = ((word & _WORD) * by for word, by in zip((a, c), _MULTIPLIERS, strict=True))
        a, b, c, d = (of_c >> 32) ^ b ^ key_a, of_c, (of_a >> 32) ^ d ^ key_c, of_a
    return a, b, c, d
