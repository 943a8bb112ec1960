"""Calls of layers, and all that may be odd about them.

A call does not crash, and does one of two things. It raises an error of ours (or torch's own RuntimeError for a
backward pass that torch does not allow), or its outputs and gradients are those of the same call by the reference in
float64, with untouched copies of its tensors. Which of them, `forward_expected` and `backward_expected` say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from memory_kinds import EITHER, EQUAL, FLAGS, NUMBERS, REFUSED, SAFE, Expected

import recollect
from recollect import cells


@recollect.cell(gates="z n", states="h s", vectors="decay shift")
def own(inp, rec, prev, vec):
    """A cell of a user's, with numbers for each unit."""
    s = prev.s * torch.sigmoid(vec.decay) + torch.tanh(inp.z + rec.z)
    return torch.tanh(inp.n + rec.n + s * vec.shift), s


CELLS = {name: cells.by_name(name) for name in cells.__all__} | {"own": own}
DTYPES = {"float32": torch.float32, "float64": torch.float64}

LENGTHS = dict.fromkeys(
    ["list", "tuple", "array", "int32", "int8", "uint8", "strided", "expanded", "sliced", "numbers"], EQUAL
) | dict.fromkeys(
    ["negative", "too long", "huge", "least", "float", "complex", "bool", "nan", "few", "many", "matrix", "emptied",
     "halved", "text", "none", "dictionary", "meta", "number"],
    REFUSED,
)  # fmt: skip
LENGTHS["sparse"] = EITHER
PACKED = dict.fromkeys(["strided sizes", "sliced sizes"], EQUAL) | dict.fromkeys(
    ["int32 sizes", "float sizes", "growing", "zero", "negative", "few rows", "many rows", "huge", "wrapping",
     "emptied sizes", "halved sizes", "no sizes", "list sizes", "sizes matrix", "too large", "below 0", "repeated",
     "swapped", "one order", "other order", "short order", "int32 order", "emptied order", "halved order"],
    REFUSED,
)  # fmt: skip
OTHER_X = {
    "parameter": EQUAL, "subclass": EITHER, "integers": REFUSED, "features": REFUSED, "axes": REFUSED,
    "no steps": REFUSED, "array": REFUSED, "none": REFUSED, "list": REFUSED,
}  # fmt: skip
OTHER_STATES = {"list": EQUAL, "other shape": REFUSED, "few": REFUSED, "number": REFUSED, "subclass": EITHER}
OTHER_PARAMETERS = {"other shape": REFUSED, "one number": REFUSED, "subclass": EITHER}
OTHER_RESETS = {"other shape": REFUSED, "list": REFUSED}
# Between the forward and the backward pass.
CHANGES = {
    "module half": EQUAL, "module bfloat16": EQUAL, "module float": EQUAL, "module double": EQUAL,
    "module half and back": EQUAL, "other data": EQUAL, "smaller data": EQUAL, "data of x": EQUAL,
    "in place x": REFUSED, "in place parameter": REFUSED,
    "emptied x": EITHER, "halved x": EITHER, "emptied parameter": EITHER, "halved parameter": EITHER,
    "released": EQUAL, "another call": EQUAL,
}  # fmt: skip
GRADIENTS = NUMBERS | {"other dtype": SAFE, "half": SAFE, "sparse": SAFE, "mkldnn": SAFE, "meta": SAFE}
# What saved tensors become while nobody looks.
HOOKS = {
    "clone": EQUAL, "float64 and back": EQUAL, "NumPy and back": EQUAL, "transposed": EQUAL, "sliced": EQUAL,
    "negative": EQUAL, "checkpoint": EQUAL,
    "bfloat16 and back": SAFE, "other dtype": SAFE, "shape": SAFE, "nothing": SAFE, "emptied": SAFE, "halved": SAFE,
    "expanded": SAFE, "zeros": SAFE, "meta": SAFE, "flat": SAFE,
}  # fmt: skip

ODD: dict[str, dict[str, Expected]] = {
    "x": NUMBERS | OTHER_X,
    "parameter": NUMBERS | OTHER_PARAMETERS,
    "state": NUMBERS | OTHER_STATES,
    "lengths": LENGTHS,
    "resets": FLAGS | OTHER_RESETS,
    "packed": PACKED,
    "change": CHANGES,
    "gradient": GRADIENTS,
    "hooks": HOOKS,
}
_FORWARD = ("x", "parameter", "state", "lengths", "resets", "packed")
_WAYS = ("once", "once", "twice", "freed", "second", "batched", "accumulate")


@dataclass(frozen=True)
class Kind:
    """Calls that the same few kernels serve."""

    cell: str
    dtype: str
    inputs: tuple[int, int]
    hidden: tuple[int, ...]
    options: tuple[str, ...]

    @classmethod
    def drawn(cls, source: random.Random) -> Kind:
        inputs, hidden = source.choice([((1, 4), (1, 2, 4)), ((1, 8), (1, 3, 8)), ((17, 20), (17,)), ((33, 40), (70,))])
        noise = source.choice(["zoneout", "recurrent_dropout"])
        options = source.choice([(), (), ("resets",), ("all_states",), (noise,), (noise, "resets", "all_states")])
        return cls(source.choice(list(CELLS)), source.choice(list(DTYPES)), inputs, hidden, options)


@dataclass(frozen=True)
class Call:
    """A layer, a call of it and a backward pass, in plain values: its repr makes it again.

    Attributes:
        rows: how the batch is given: ``"dense"``, ``"one"`` (without B), ``"padded"``, ``"packed"`` or ``"in order"``.
        options: what the call adds; zoneout and recurrent dropout are random.
        leaf: whether x needs a gradient: ``"data"`` does not, ``"leaf"`` and ``"inner"`` do.
        mode: ``"grad"``, ``"no_grad"`` or ``"inference"``.
        side: of the guard pages.
        odd: what is odd about which argument; see `ODD`.
    """

    cell: str
    dtype: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    layers: int
    both_ways: bool
    bias: bool
    batch_first: bool
    training: bool
    dropout: bool
    learned: bool
    checkpoint: int | str | None
    rows: str
    lengths: tuple[int, ...]
    options: tuple[str, ...]
    states: bool
    leaf: str
    mode: str
    way: str
    loss: str
    threads: int
    backend: str
    side: str
    odd: tuple[tuple[str, str], ...]
    seed: int

    def kind(self, what: str) -> str:
        """What is odd about an argument; empty where nothing."""
        return dict(self.odd).get(what, "")

    @property
    def runs(self) -> int:
        return self.layers * (1 + self.both_ways)


@st.composite
def examples(draw: Any, kind: Kind) -> Call:
    """Calls of a kind: most of them with one odd thing, or two."""
    cell = CELLS[kind.cell]
    steps, batch = draw(st.integers(1, 20)), draw(st.integers(1, 12) | st.integers(13, 40))
    hidden, both_ways = draw(st.sampled_from(kind.hidden)), draw(st.booleans())
    rows = draw(st.sampled_from(["dense", "dense", "padded", "padded", "packed", "in order", "one"]))
    if rows == "one":
        batch = 1
    least = 1 if rows in ("packed", "in order") else 0
    equal, length = st.just((steps,) * batch), st.integers(least, steps)
    lengths = draw(
        st.lists(length, min_size=batch, max_size=batch).map(tuple) if rows not in ("dense", "one") else equal
    )
    if rows == "in order":
        lengths = tuple(sorted(lengths, reverse=True))
    states = draw(st.booleans())
    options = tuple(option for option in kind.options if kind.cell != "slstm" or option != "zoneout")
    mode = draw(st.sampled_from(["grad"] * 6 + ["no_grad", "inference"]))
    possible = {
        "x", "parameter", *(["state"] if states else []), *(["resets"] if "resets" in options else []),
        *(["lengths"] if rows == "padded" else []), *(["packed"] if rows in ("packed", "in order") else []),
        *(["change", "gradient", "hooks"] if mode == "grad" else []),
    }  # fmt: skip
    odd = []
    count = draw(st.sampled_from([0, 1, 1, 1, 2]))
    for what in draw(st.lists(st.sampled_from(sorted(possible)), min_size=count, max_size=count, unique=True)):
        odd.append((what, draw(st.sampled_from(list(ODD[what])))))
    if "subclass" in dict(odd).values():  # for which torch's own operations serve, with their own faults
        odd = [(what, odd_kind) for what, odd_kind in odd if odd_kind == "subclass"][:1]
    if dict(odd).get("lengths") == "expanded":  # one number for all rows
        lengths = lengths[:1] * batch
    layers = draw(st.integers(1, 2))
    return Call(
        kind.cell, kind.dtype, steps, batch, draw(st.integers(*kind.inputs)), hidden,
        # A second layer reads no more than the same kernels can.
        layers=layers if hidden * (1 + both_ways) <= 2 * kind.inputs[1] else 1,
        both_ways=both_ways,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        training=draw(st.booleans()),
        dropout=draw(st.booleans()),
        learned=draw(st.sampled_from([False, False, True])) and len(cell.states) > 0,
        checkpoint=draw(st.sampled_from([None, None, None, 1, 3, 7, "auto"])),
        rows=rows, lengths=lengths, options=options, states=states,
        leaf=draw(st.sampled_from(["data", "leaf", "leaf", "inner"])),
        mode=mode,
        way=draw(st.sampled_from(_WAYS)),
        loss=draw(st.sampled_from(["y", "final", "both"])),
        threads=draw(st.sampled_from([1, 1, 1, 2])),
        backend=draw(st.sampled_from(["auto", "auto", "llvm"])),
        side=draw(st.sampled_from(["after", "after", "before"])),
        odd=tuple(odd),
        seed=draw(st.integers(0, 2**16)),
    )  # fmt: skip


# What is expected --------------------------------------------------------------------------------


def nothing_to_read(call: Call) -> bool:
    return not sum(call.lengths)


def forward_expected(call: Call) -> Expected:
    """What the forward pass may do."""
    found = max((ODD[what][kind] for what, kind in call.odd if what in _FORWARD), default=EQUAL)
    if "resets" in call.options and call.checkpoint is not None:
        found = max(found, EITHER)
    # Zeros that are nowhere, as a parameter that is to be trained, are for torch to take or not.
    if call.kind("parameter") in ("zeros", "negative", "subclass", "sparse", "mkldnn"):
        found = max(found, EITHER)
    if call.learned and call.states and call.kind("parameter"):  # perhaps of a learned state, which is not read then
        found = min(found, EITHER)
    if call.rows == "one" and call.kind("x") == "axes":
        return SAFE
    return min(found, EITHER) if nothing_to_read(call) else found


def backward_expected(call: Call) -> Expected:
    """What the backward pass may do."""
    kinds = {what: ODD[what][kind] for what, kind in call.odd if what not in _FORWARD}
    if call.loss == "final":
        kinds.pop("gradient", None)
    found = max(kinds.values(), default=EQUAL)
    if call.way in ("second", "batched") and (call.checkpoint is not None or "change" in kinds):
        found = max(found, EITHER)
    if (
        call.learned and call.kind("change") == "in place parameter"
    ):  # perhaps a learned state, of which there are copies
        found = SAFE
    if call.way in ("batched", "second") and call.kind("gradient"):
        found = max(found, SAFE)
    if call.kind("parameter") == "sparse" and "change" in kinds:  # whose leaf torch makes anew
        found = SAFE
    if call.kind("hooks") and "change" in kinds:  # a hook may keep the very tensor that changes
        found = SAFE
    return SAFE if nothing_to_read(call) and found > EQUAL else found
