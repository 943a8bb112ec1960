"""The tile: a block of sums that stays in registers. All products of the kernels are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

from llvmlite import ir

from recollect.engine.llvm.kernel import Kernel
from recollect.engine.llvm.values import I64, POINTER, Emitter, Value, Variable

_AHEAD = 16  # k, which take about as long as a line from the last cache


@dataclass(frozen=True)
class Run:
    """One product that a tile adds: ``a[r][k] w[k][v]`` for the vectors [first, last); k counts terms (`products.py`).

    ``w`` is packed: one row of ``last - first`` vectors after the other. k runs along a row of ``a``, or, with
    ``down``, over the rows of ``a``, whose columns r are then. With ``placed``, row r is at its place in a table.
    """

    first: int
    last: int
    down: bool = False
    placed: bool = False

    @property
    def vectors(self) -> range:
        """Those of the tile that it adds to."""
        return range(self.first, self.last)


@dataclass(frozen=True)
class Ahead:
    """How the tiles of a piece fetch the next piece, which lies behind it: each its share, a little with each term.

    For weights that no near cache holds from one step to the next: the first tile of a piece would wait for each line.

    Attributes:
        start: where this tile's share begins.
        step: how many numbers further on to fetch with each term.
    """

    start: Value
    step: Value

    @classmethod
    def share(cls, e: Emitter, next_piece: Value, row_length: int, terms: Value, which: Value, tiles: Value) -> Ahead:
        """That of one of so many ``tiles`` of a piece of ``terms``, whose packed rows are at most so long."""
        tiles = e.most(tiles, e.integer(1))
        step = (tiles + (row_length - 1)) // tiles
        return cls(e.at(next_piece, which * terms * step), step)


class Tile:
    """A block of accumulators that stay in registers, written for each number of rows up to ``rows``.

    ``out[r][v] = init[r][v] + sum over runs of sum_k a[r][k] w[k][v]``

    Args:
        vectors: width of the block.
        runs: the products.
        masked: ``init`` and ``out`` are only as wide as told.
        placed: row r of ``init`` and ``out`` is at its place in a table.
        columns: where in a row of ``init`` and ``out`` each vector is; one after the other if None.
        fetching: each call is told what to fetch `Ahead`.

    Attributes:
        widest: vectors that the widest of the products adds to; as many are in registers at once.
        rows: of the tallest tile.
    """

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        vectors: int,
        runs: Sequence[Run],
        *,
        masked: bool = False,
        placed: bool = False,
        columns: Sequence[int] | None = None,
        fetching: bool = False,
    ) -> None:
        self.widest = max(len(run.vectors) for run in runs)
        self.rows, self.vectors, self.masked, self.placed = kernel.tiling.rows(self.widest), vectors, masked, placed
        self._products = kernel.products
        self._columns = columns or [v * kernel.tiling.lanes for v in range(vectors)]
        self.fetching = fetching
        # out, its stride, init, its stride, columns, the table of places; per run: a, its stride, k, w; what to fetch
        # and how much further on with each k.
        types = [POINTER, I64, POINTER, I64, I64, POINTER] + [POINTER, I64, I64, POINTER] * len(runs)
        types += [POINTER, I64] if fetching else []
        self._functions = [
            self._write(kernel.function(f"{name}_{height}", *types), height, runs) for height in range(1, self.rows + 1)
        ]

    def _write(self, e: Emitter, height: int, runs: Sequence[Run]) -> ir.Function:
        # By itself, its loop has all registers: inlined, addresses of what surrounds it would crowd the stack.
        e.function.attributes.add("noinline")
        out, out_stride, init, init_stride, columns, table = e.arguments[:6]
        in_order = in_table = [e.integer(r) for r in range(height)]
        if self.placed or any(run.placed for run in runs):
            in_table = [e.load_integer(table, r) for r in in_order]
        places = in_table if self.placed else in_order
        masks = [e.mask(columns - v * e.lanes) for v in range(self.vectors)] if self.masked else []

        # The sums of each vector, row by row: in registers from the first product that adds to them to the last.
        total: dict[int, list[Variable]] = {}
        next_piece, further = e.arguments[-2:]  # of a tile that fetches
        for index, run in enumerate(runs):
            for v in run.vectors:
                if v not in total:
                    ats = [init_stride * place + self._columns[v] for place in places]
                    values = [e.load_masked(masks[v], init, at) if self.masked else e.load(init, at) for at in ats]
                    total[v] = [e.variable(e.vector, value) for value in values]
            a, a_stride, count, w = e.arguments[6 + 4 * index : 10 + 4 * index]
            rows = [
                e.at(a, r if run.down else a_stride * (in_table if run.placed else in_order)[r]) for r in range(height)
            ]
            with e.loop(0, count) as k:
                weights = e.at(w, k * (len(run.vectors) * e.lanes))
                place = k * a_stride if run.down else k
                if run.down:  # each k is on another line, often on another page: no processor foresees that
                    e.prefetch(rows[0], (k + _AHEAD) * a_stride)
                if self.fetching:
                    e.prefetch(next_piece, k * further, later=True)
                # Loaded where first needed: those of the shorter side stay, those of the longer one pass by.
                order = list(product(range(height), run.vectors))
                if height < len(run.vectors):
                    order.sort(key=lambda pair: pair[1])
                numbers: dict[int, Value] = {}
                vectors: dict[int, Value] = {}
                for r, v in order:
                    if r not in numbers:
                        numbers[r] = e.splat(e.load_one(rows[r], place))
                    if v not in vectors:
                        vectors[v] = e.load(weights, (v - run.first) * e.lanes)
                    total[v][r].set(self._products.multiply_add(e, numbers[r], vectors[v], total[v][r].get()))
            if self.fetching:
                next_piece = e.at(next_piece, count * further)
            later = {v for each in runs[index + 1 :] for v in each.vectors}
            for v in run.vectors:
                if v not in later:
                    values = [each.get() for each in total[v]]
                    offsets = [out_stride * place + self._columns[v] for place in places]
                    if self.masked:
                        e.store_column(values, masks[v], out, offsets)
                    else:
                        for value, offset in zip(values, offsets, strict=True):
                            e.store(value, out, offset)
        e.builder.ret_void()
        return e.function

    def call(
        self,
        e: Emitter,
        rows: Value,
        out: tuple[Value, Value],
        init: tuple[Value, Value],
        *runs: tuple[Value, Value, Value, Value],
        columns: Value | None = None,
        places: Value | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        """Call the tile of the right height.

        Args:
            rows: how many rows, at most `rows`; none is fine.
            out, init: each a pointer and the stride from row to row.
            runs: for each, a, its stride, the number of terms, and w.
            columns: how many columns ``out`` has left, where the tile is masked.
            places: the table of places, from the first row on, where something is placed.
            ahead: what a tile that is ``fetching`` fetches.
        """
        flat = [value for run in runs for value in run]
        table = places or out[0]  # which is not read then
        arguments = (*out, *init, columns or e.integer(0), table, *flat, *((ahead.start, ahead.step) if ahead else ()))
        for height, function in enumerate(self._functions, 1):
            with e.when(rows.compare("==", height)):
                e.call(function, *arguments)


@contextmanager
def pieces(e: Emitter, count: Value, size: Value, first: Value | int = 0) -> Iterator[tuple[Value, Value]]:
    """``for (begin, end) in the pieces of range(first, count)``.

    A sum over many k is taken piece by piece, each for all rows, so that the packed weights of a piece stay in
    the first-level cache while row after row is multiplied with them. Sums go through memory in between, which
    changes no bit of them.
    """
    with e.loop(first, count, size) as begin:
        yield begin, e.least(begin + size, count)
