"""The compiled kernels of a cell: made at first use, kept for the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cached_property

from recollect.engine.llvm import backward, forward
from recollect.engine.llvm.kernel import Kernel, Shape, make_shape
from recollect.engine.llvm.machine import COMPILING, compile_module, host
from recollect.engine.plan import Plan, make_plan
from recollect.graph.graph import Graph

_CACHE: dict[tuple[object, ...], Kernels] = {}


class Function:
    """A compiled kernel that is called with its slots by name."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._code = compile_module(str(kernel.module), host())
        # ctypes lets go of the interpreter's lock during the call.
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.address(name))
        self._slots = kernel.slots
        self._array = ctypes.c_int64 * len(kernel.slots)

    def __call__(self, values: Mapping[str, int]) -> None:
        """Run the kernel.

        Args:
            values: an integer or an address for every slot.
        """
        self._run(self._array(*[values[slot] for slot in self._slots]))


class Kernels:
    """The kernels of one cell for one dtype and tile shape; each is compiled when first asked for."""

    def __init__(self, plan: Plan, shape: Shape) -> None:
        self.plan, self.shape = plan, shape

    @cached_property
    def infer(self) -> Function:
        """The forward pass that stores nothing for a backward pass."""
        return self._compile(lambda: Function(forward.write(self.plan, self.shape, save=False), "forward"))

    @cached_property
    def train(self) -> Function:
        """The forward pass that saves what the backward pass reads."""
        return self._compile(lambda: Function(forward.write(self.plan, self.shape, save=True), "forward"))

    @cached_property
    def backward(self) -> Function:
        """The backward pass."""
        return self._compile(lambda: Function(backward.write(self.plan, self.shape), "backward"))

    @cached_property
    def sums(self) -> tuple[str, ...]:
        return backward.sum_names(self.plan)

    def _compile(self, make: Callable[[], Function]) -> Function:
        with COMPILING:
            return make()


def kernels_for(
    graph: Graph,
    gates: tuple[str, ...],
    states: tuple[str, ...],
    vectors: tuple[str, ...],
    dtype: str,
    hidden: int,
) -> Kernels:
    """The kernels of a cell; the graph's content is the key, so equal names never collide."""
    parts = -(-hidden // host().lanes(dtype))
    key = (graph.key, gates, states, vectors, dtype, min(parts, 4))
    found = _CACHE.get(key)
    if found is None:
        plan = make_plan(graph, gates, states, vectors)
        found = _CACHE.setdefault(key, Kernels(plan, make_shape(plan, host(), dtype, hidden)))
    return found
