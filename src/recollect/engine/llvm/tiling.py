"""How a cell's matrices are cut into tiles on a machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from recollect.engine.llvm.machine import Machine
from recollect.engine.llvm.products import Numbers, products_of
from recollect.engine.llvm.values import SIZE
from recollect.engine.plan import Plan

WIDE = 4  # vectors side by side in a tile, where the matrix is that wide
GROUP = 4  # vectors of units whose equations are evaluated together, where there are so many
_PIECE_BYTES = 1 << 15
_ALONE = 1.2  # how much longer products take in panels of one vector, where each number is loaded for one multiply-add


@dataclass(frozen=True)
class Tiling:
    """How a plan is cut into tiles on a machine, for one dtype.

    A *unit block* is ``unit_vectors`` vectors of hidden units; a tile of the forward pass holds all
    accumulators of one unit block for some batch rows in registers. A *group* is ``group_blocks`` of them side by
    side, whose equations are evaluated together: each is a chain of instructions in which one waits for the other, so
    a processor needs several. The products of the backward pass are cut into panels of ``wide`` vectors.

    Attributes:
        dtype, lanes: numbers and how many of them are in a vector.
        registers: accumulators that fit into registers.
        most_rows: of a tile, whatever fits.
        unit_vectors: vectors in a unit block.
        group_blocks: unit blocks in a group.
        hidden_wide, input_wide: vectors in a panel of H and of I columns.
        pause: what a waiting thread calls to leave the core's resources to others, by LLVM's name; or empty.
        mode_register: the machine's.
        bfloat16: how products are computed from numbers rounded to bfloat16: `Machine.bfloat16`; empty where numbers
            are multiplied as they are.
    """

    dtype: str
    lanes: int
    registers: int
    unit_vectors: int
    group_blocks: int
    hidden_wide: int
    input_wide: int
    pause: str
    mode_register: str
    bfloat16: str = ""
    most_rows: int = 8

    @property
    def products(self) -> Numbers:
        """How kernels multiply."""
        return products_of(self.bfloat16)

    def terms(self, count: int) -> int:
        """The terms of a sum over so many k, each as large as a number of the dtype."""
        return -(-count // self.products.per_term)

    @property
    def block(self) -> int:
        """Units in a unit block."""
        return self.unit_vectors * self.lanes

    @property
    def group(self) -> int:
        """Units in a group."""
        return self.group_blocks * self.block

    def rows(self, vectors: int) -> int:
        """The tallest tile of so many vectors."""
        return max(1, min(self.most_rows, self.registers // vectors))

    def spread(self, count: int) -> int:
        """Room for a row of so many numbers: an odd number of cache lines, so that rows spread over sets."""
        line = 64 // SIZE[self.dtype]
        return (round_up(count, line) // line | 1) * line

    def piece(self, vectors: int) -> int:
        """How many terms of a panel so wide stay in a first-level cache."""
        return _PIECE_BYTES // (vectors * self.lanes * SIZE[self.dtype])

    def for_one_row(self) -> Tiling:
        """The same for the forward pass of one row, with unit blocks twice as wide where a group has two.

        A multiply-add waits for the one before that has the same sum. A row has as many sums as a tile is wide, and
        processors begin some eight multiply-adds until the first is done.
        """
        if self.group_blocks % 2:
            return self
        return replace(self, unit_vectors=2 * self.unit_vectors, group_blocks=self.group_blocks // 2, most_rows=1)

    def width(self, hidden: int) -> int:
        """H rounded up to whole groups: the row length of states and saved values."""
        return round_up(hidden, self.group)


def round_up(count: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-count // unit) * unit


def without_tiles(dtype: str, lanes: int, pause: str = "") -> Tiling:
    """For a kernel that has vectors and no tiles."""
    return Tiling(dtype, lanes, 0, 0, 0, 0, 0, pause=pause, mode_register="")


def make_tiling(
    plan: Plan, machine: Machine, dtype: str, inputs: int, hidden: int, *, bfloat16: bool = False
) -> Tiling:
    """Choose tiles: about four vectors wide, and as many rows as registers allow."""
    lanes = machine.lanes(dtype)

    def fitting(most: int, count: int, size: int, alone: float = 1.0) -> int:
        """How many pieces of that size side by side leave the least room unused; one ``alone`` takes so much longer."""
        pieces = round_up(count, size) // size
        times = {
            wide: round_up(pieces, wide) * (alone if wide == 1 else 1.0) for wide in range(min(most, pieces), 0, -1)
        }
        return min(times, key=times.__getitem__)

    unit_vectors = max(1, min(WIDE // plan.widest_run, round_up(hidden, lanes) // lanes))
    return Tiling(
        dtype=dtype,
        lanes=lanes,
        registers=machine.accumulators,
        unit_vectors=unit_vectors,
        group_blocks=fitting(max(1, GROUP // unit_vectors), hidden, unit_vectors * lanes),
        hidden_wide=fitting(WIDE, hidden, lanes, _ALONE),
        input_wide=fitting(WIDE, inputs, lanes, _ALONE),
        pause=machine.pause,
        mode_register=machine.mode_register,
        bfloat16=machine.bfloat16 if bfloat16 else "",
    )
