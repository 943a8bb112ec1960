"""The compiled kernels of a cell: made at first use, kept for the process and on disk."""

from __future__ import annotations

import ctypes

from recollect.engine.llvm import backward, cache, forward
from recollect.engine.llvm.machine import COMPILING, Code, compile_module, host
from recollect.engine.llvm.tiling import Tiling, make_tiling
from recollect.engine.llvm.values import SIZE
from recollect.engine.plan import Variant, make_plan
from recollect.graph.graph import Graph

_CACHE: dict[tuple[object, ...], Kernels] = {}


class Function:
    """A compiled kernel.

    Attributes:
        slots: the names of its arguments, in order.
        address: where it is.
        run: calls it with the address of an array of its arguments, each in 64 bits.
    """

    def __init__(self, name: str, slots: tuple[str, ...], code: Code) -> None:
        self._code, self.slots = code, slots  # the code lives as long as its function
        self.address = code.address(name)
        # ctypes lets go of the interpreter's lock during the call.
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)

    def entry(self, name: str) -> int:
        """The address of an entry of its code, all of which take the same arguments."""
        return self._code.address(name)


class Kernels:
    """The kernels of one cell in one dtype and variant; each is compiled when first asked for."""

    def __init__(
        self,
        graph: Graph,
        gates: tuple[str, ...],
        states: tuple[str, ...],
        vectors: tuple[str, ...],
        dtype: str,
        variant: Variant,
    ) -> None:
        if variant.bfloat16:
            host().check_bfloat16()  # a graph may have been traced on another machine
        self.plan = make_plan(graph, gates, states, vectors, variant)
        self.dtype, self._bfloat16 = dtype, variant.bfloat16
        # Without what the author called the nodes: that shows in the plan's activations, in no kernel.
        self._content = (graph.key, gates, states, vectors, dtype, variant)
        self._functions: dict[tuple[object, ...], Function] = {}

    @property
    def weight_bytes(self) -> int:
        """What a packed weight takes."""
        return SIZE[self.dtype] // (2 if self._bfloat16 else 1)

    def tiling(self, inputs: int, hidden: int) -> Tiling:
        """How a layer of these sizes is cut into tiles."""
        return make_tiling(self.plan, host(), self.dtype, inputs, hidden, bfloat16=self._bfloat16)

    def forward(self, tiling: Tiling, *, save: bool, fetching: bool = False) -> Function:
        """The forward pass; with ``save`` it keeps what the backward pass reads, ``fetching`` weights ahead."""
        kind = ("fetching",) if fetching else ()
        sizes = (tiling.unit_vectors, tiling.group_blocks, tiling.most_rows)
        return self._get(("forward", save, *sizes, *kind), tiling)

    def backward(self, tiling: Tiling, *, watched: bool = False, fetching: bool = False) -> Function:
        """The backward pass; if it is ``watched`` it also leaves dL/ds of each state at each step."""
        sizes = (tiling.hidden_wide, tiling.input_wide)
        kind = [name for name, wanted in (("watched", watched), ("fetching", fetching)) if wanted]
        return self._get(("backward", *sizes, *kind), tiling)

    def _get(self, key: tuple[object, ...], tiling: Tiling) -> Function:
        found = self._functions.get(key)
        if found is None:
            with COMPILING:  # whoever waited finds it made
                found = self._functions.get(key)
                if found is None:
                    found = self._functions[key] = self._make(key, tiling)
        return found

    def _make(self, key: tuple[object, ...], tiling: Tiling) -> Function:
        """Take a kernel from the disk; where it is not there yet, write and compile it and leave it there."""
        name, machine = str(key[0]), host()
        place = cache.key(self._content, key, machine)
        entry = cache.load(place)
        if entry is None:
            if name == "forward":
                kernel = forward.write(self.plan, tiling, save=bool(key[1]), fetching="fetching" in key)
            else:
                kernel = backward.write(self.plan, tiling, watched="watched" in key, fetching="fetching" in key)
            # With its slots, so that a kernel from the disk is called without being written.
            entry = " ".join(kernel.slots).encode() + b"\n" + compile_module(str(kernel.module), machine)
            cache.store(place, entry)
        slots, _, code = entry.partition(b"\n")
        return Function(name, tuple(slots.decode().split()), Code(code, machine))


def kernels_for(
    graph: Graph,
    gates: tuple[str, ...],
    states: tuple[str, ...],
    vectors: tuple[str, ...],
    dtype: str,
    variant: Variant,
) -> Kernels:
    """The kernels of a cell; equal graphs share them, whatever their cells are called."""
    key = (graph, gates, states, vectors, dtype, variant)
    found = _CACHE.get(key)
    if found is None:
        found = _CACHE.setdefault(key, Kernels(graph, gates, states, vectors, dtype, variant))
    return found
