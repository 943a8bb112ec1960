"""Random masks of a call: drawn by a kernel of ours where it can serve, and by torch elsewhere."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache, lru_cache

import torch

from recollect.engine import autograd
from recollect.engine.calls import DTYPES
from recollect.engine.llvm import masks
from recollect.engine.llvm.fixed import fixed_code
from recollect.engine.llvm.kernels import Function
from recollect.engine.llvm.once import cached_property
from recollect.engine.llvm.problem import Parts, Pass
from recollect.engine.llvm.team import Team, team


class Masks:
    """The masks of one call, one after the other.

    A number is drawn where a word of 32 random bits is below the probability times 2^32, rounded: never at 0, always
    at 1. All words of a call follow from 64 bits of torch's generator, drawn when the first mask is, so that a seed
    repeats them on any machine and any number of threads.

    Args:
        like: has their device and type.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._like, self._by_torch = like, not autograd.can_be_written(like)
        self._drawn = 0

    def bernoulli(self, shape: Sequence[int], probability: float) -> torch.Tensor:
        """1 with a probability, 0 otherwise."""
        if self._by_torch:
            return torch.bernoulli(self._like.new_full(shape, probability))
        return self._draw(shape, probability, 1.0)

    def dropout(self, shape: Sequence[int], probability: float) -> torch.Tensor:
        """0 with a probability p, 1/(1 - p) otherwise."""
        if self._by_torch:
            return torch.nn.functional.dropout(self._like.new_ones(shape), probability)
        kept = 1.0 - probability
        return self._draw(shape, kept, 1.0 / kept if kept else 0.0)

    def _draw(self, shape: Sequence[int], probability: float, value: float) -> torch.Tensor:
        out = self._like.new_empty(shape)
        (bits,) = struct.unpack("q", struct.pack("d", value))
        kernel = _kernel(out.dtype, torch.get_num_threads(), team())
        arguments = [out.data_ptr(), out.numel(), self._key, self._drawn, round(probability * 2**32), bits]
        kernel.run(kernel.arguments(arguments))
        self._drawn += 1
        return out

    @cached_property
    def _key(self) -> int:
        return int(torch.empty((), dtype=torch.int64, device="cpu").random_(-(2**63), None))


@lru_cache(maxsize=16)
def _kernel(dtype: torch.dtype, threads: int, workers: Team) -> Pass:
    sizes = workers.slots | {"threads": workers.size(threads)}
    return Pass(_function(DTYPES[dtype]), sizes, masks.ARGUMENTS, Parts())


@cache
def _function(dtype: str) -> Function:
    return Function("masks", masks.SLOTS, fixed_code(f"masks {dtype}", lambda: masks.write(dtype).module))
