"""The layer and the arguments of a call: as the call has them, or as the reference gets them."""

from __future__ import annotations

import random
from typing import Any

import guarded
import torch
from layer_calls import CELLS, DTYPES, OTHER_X, Call
from memory_kinds import laid, values_of
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from recollect import nn


class Subject:
    """The layer and the arguments of a call: as the call has them, or plain, in float64, for the reference."""

    def __init__(self, call: Call, *, plain: bool) -> None:
        self.call, self._plain = call, plain
        self._dtype = DTYPES[call.dtype]
        self._random = torch.Generator().manual_seed(call.seed)
        self.layer = self._layer()
        self.parameters = dict(self.layer.named_parameters())
        self.x, self.leaf, self.lengths = self._input()
        self.resets = self._resets()
        self.states = self._states()

    def _draw(self, *shape: int) -> torch.Tensor:
        """Random numbers that the call's type can hold, in float64."""
        return torch.randn(shape, generator=self._random, dtype=torch.float64).to(self._dtype).double()

    def _laid(self, values: torch.Tensor, kind: str) -> torch.Tensor:
        values = values_of(kind, values)
        return values if self._plain else laid(values, self._dtype, kind)

    def _layer(self) -> nn.Recurrent:
        call = self.call
        layer = nn.Recurrent(
            CELLS[call.cell], call.inputs, call.hidden, call.layers, call.bias, call.batch_first,
            0.3 if call.dropout and call.layers > 1 else 0.0, call.both_ways,
            recurrent_dropout=0.3 if "recurrent_dropout" in call.options else 0.0,
            zoneout=0.3 if "zoneout" in call.options else 0.0,
            learned_initial_state=call.learned, checkpoint=call.checkpoint, dtype=torch.float64,
        ).train(call.training)  # fmt: skip
        every = list(layer.named_parameters())
        odd, kind = call.seed % len(every), call.kind("parameter")
        for place, (name, parameter) in enumerate(every):
            scale = 0.3 if name.startswith("initial") else call.hidden**-0.5
            values = (self._draw(*parameter.shape) * scale).to(self._dtype).double()
            if name.startswith("initial"):  # a cell may divide by its states
                values = values.abs() + 0.5
            self._set(layer, name, values, kind if place == odd else "", shrinks=place == odd)
        return layer

    def _set(self, layer: nn.Recurrent, name: str, values: torch.Tensor, kind: str, *, shrinks: bool) -> None:
        """Give a parameter its numbers, of a kind."""
        change = self.call.kind("change")
        if self._plain:
            layer.get_parameter(name).data = values_of(kind, values)
        elif kind in ("other shape", "one number"):
            wrong = values[1:] if kind == "other shape" and len(values) > 1 else values.new_zeros(())
            setattr(layer, name, torch.nn.Parameter(laid(wrong, self._dtype)))
        elif kind == "subclass":
            setattr(layer, name, torch.nn.Parameter(laid(values, self._dtype).as_subclass(Marked)))
        elif not kind and shrinks and change.split()[0:1] in (["emptied"], ["halved"]):
            setattr(layer, name, torch.nn.Parameter(values.to(self._dtype)))  # in memory that can become less
        else:
            setattr(layer, name, torch.nn.Parameter(self._laid(values, kind)))

    def _input(self) -> tuple[Any, torch.Tensor | None, Any]:
        call, kind = self.call, self.call.kind("x")
        values = self._draw(call.steps, call.batch, call.inputs)
        lengths = torch.tensor(call.lengths)
        packing = call.rows in ("packed", "in order")
        if kind not in ("expanded", "zeros", "sparse", "mkldnn") and not packing:
            values[torch.arange(call.steps).unsqueeze(1) >= lengths] = torch.nan  # padding is never read
        if packing:
            packed = pack_padded_sequence(values, lengths, enforce_sorted=call.rows == "in order")
            values = packed.data
        elif call.rows == "one":
            values = values.squeeze(1)
        elif call.batch_first:
            values = values.transpose(0, 1).contiguous()
        data = self._odd_input(values, kind)
        leaf = None
        if isinstance(data, torch.Tensor) and call.leaf != "data" and data.is_floating_point():
            leaf = data.requires_grad_()
            if call.leaf == "inner" and leaf.layout is torch.strided:
                data = leaf.view_as(leaf)
        if packing:
            parts = [packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices]
            parts = parts if self._plain else _odd_parts(call, parts)
            return PackedSequence._make([data, *parts]), leaf, None  # without torch's own look at them
        if call.rows != "padded":
            return data, leaf, None
        kind = call.kind("lengths")
        return data, leaf, lengths.clone() if self._plain else _odd_lengths(lengths, kind, call.steps)

    def _odd_input(self, values: torch.Tensor, kind: str) -> Any:
        if self._plain:
            return values_of(kind, values)
        if kind in OTHER_X:
            plain = laid(values, self._dtype)
            match kind:
                case "parameter":
                    return torch.nn.Parameter(plain)
                case "subclass":
                    return plain.as_subclass(Marked)
                case "integers":
                    return plain.nan_to_num().long()
                case "features":
                    return laid(values[..., 1:], self._dtype)
                case "axes":
                    return plain[0] if plain.dim() == 2 else plain.unsqueeze(0)
                case "no steps":
                    return laid(
                        values[:0] if values.dim() == 2 or not self.call.batch_first else values[:, :0], self._dtype
                    )
                case "array":
                    return plain.numpy()
                case "none":
                    return None
                case "list":
                    return plain.tolist()
        if self.call.kind("change") in ("emptied x", "halved x") and not kind:
            return values.to(self._dtype)  # in memory that can become less
        return self._laid(values, kind)

    def _resets(self) -> Any:
        call, kind = self.call, self.call.kind("resets")
        shape = rows_of(self.x).shape[:-1] if self._plain else Subject._shape(call)
        drawn = torch.rand(shape, generator=self._random) < 0.25
        if "resets" not in call.options:
            return None
        if kind == "list":
            return drawn if self._plain else drawn.tolist()
        if kind == "other shape":
            return drawn if self._plain else laid(drawn.unsqueeze(-1), torch.bool)
        return values_of(kind, drawn) if self._plain else laid(values_of(kind, drawn), torch.bool, kind)

    @staticmethod
    def _shape(call: Call) -> tuple[int, ...]:
        """Of x without features."""
        if call.rows == "one":
            return (call.steps,)
        if call.rows in ("packed", "in order"):
            return (sum(call.lengths),)
        return (call.batch, call.steps) if call.batch_first else (call.steps, call.batch)

    def _states(self) -> Any:
        call, kind = self.call, self.call.kind("state")
        names = CELLS[call.cell].states
        shape = (call.runs, *([] if call.rows == "one" else [call.batch]), call.hidden)
        drawn = [(self._draw(*shape).abs() + 0.5).to(self._dtype).double() for _ in names]
        if not call.states:
            return None
        odd, found = call.seed % len(names), []
        for place, values in enumerate(drawn):
            own = kind if place == odd else ""
            if call.cell == "slstm" and own == "zeros":  # all of them, or it divides by 0
                own = "expanded"
            if self._plain:
                state = values_of(own, values)
            elif own == "other shape":
                state = laid(values[..., 1:], self._dtype)
            elif own == "subclass":
                state = laid(values, self._dtype).as_subclass(Marked)
            else:
                state = laid(values_of(own, values), self._dtype, own)
            found.append(state.requires_grad_() if call.seed % 3 and state.is_floating_point() else state)
        if not self._plain and kind == "few":
            return tuple(found[1:])
        if not self._plain and kind == "number":
            return 0.0
        return found[0] if len(found) == 1 and kind != "list" else (found if kind == "list" else tuple(found))

    def run(self) -> tuple[dict[str, torch.Tensor], Any]:
        """The outputs by name, and y as it came."""
        every = "all_states" in self.call.options
        options = {} if self.lengths is None else {"lengths": self.lengths}
        results = self.layer(self.x, self.states, resets=self.resets, return_states=every, **options)
        y, final, *rest = results
        found = {"y": rows_of(y)}
        found |= {f"final {place}": state for place, state in enumerate(listed(final))}
        found |= {f"all of {place}": rows_of(state) for place, state in enumerate(listed(rest[0]) if rest else [])}
        return found, y

    def leaves(self) -> dict[str, torch.Tensor]:
        """What gradients are wanted of, by name."""
        found = dict(self.layer.named_parameters())
        if self.leaf is not None:
            found["x"] = self.leaf
        if isinstance(self.states, torch.Tensor | tuple | list):
            found |= {f"initial {place}": state for place, state in enumerate(listed(self.states))}
        found = {name: leaf for name, leaf in found.items() if leaf.requires_grad}
        names = random.Random(self.call.seed).sample(sorted(found), len(found))
        few = names[: 1 + self.call.seed % len(names)] if self.call.seed % 2 else names
        return {name: found[name] for name in few}


class Marked(torch.Tensor):
    """A subclass that changes nothing, but could."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(function, types, args, kwargs or {})


def rows_of(x: Any) -> Any:
    return x.data if isinstance(x, PackedSequence) else x


def listed(values: Any) -> list[Any]:
    several = isinstance(values, tuple | list) and not isinstance(values, PackedSequence)
    return list(values) if several else [values]


def _odd_lengths(lengths: torch.Tensor, kind: str, steps: int) -> Any:
    given = guarded.tensor(lengths)
    if kind in ("strided", "sliced"):
        return laid(lengths, torch.int64, kind)
    if kind in ("emptied", "halved", "meta", "sparse"):
        return laid(lengths, torch.int64, kind)
    first = given[:1]
    match kind:
        case "list":
            return lengths.tolist()
        case "tuple":
            return tuple(lengths.tolist())
        case "numbers":
            return list(lengths.numpy())
        case "array":
            return guarded.of_array(lengths.numpy())
        case "int32" | "int8" | "uint8":
            return guarded.tensor(lengths.to(getattr(torch, kind)))
        case "expanded":
            return first.expand_as(given)
        case "negative":
            first.fill_(-1)
        case "too long":
            first.fill_(steps + 1)
        case "huge":
            first.fill_(2**62)
        case "least":
            first.fill_(-(2**63))
        case "float":
            return guarded.tensor(lengths.double())
        case "complex":
            return lengths.to(torch.complex64)
        case "bool":
            return guarded.tensor(lengths > 0)
        case "nan":
            return [float("nan")] * len(lengths)
        case "few":
            return given[1:]
        case "many":
            return guarded.tensor(torch.cat([lengths, lengths]))
        case "matrix":
            return given.unsqueeze(0)
        case "text":
            return "length"
        case "none":
            return [None] * len(lengths)
        case "dictionary":
            return {"lengths": lengths}
        case "number":
            return steps
    return given


def _odd_parts(call: Call, parts: list[torch.Tensor | None]) -> list[Any]:
    """batch_sizes, sorted_indices and unsorted_indices, of a kind."""
    kind = call.kind("packed")
    sizes, order, inverse = (None if part is None else guarded.tensor(part) for part in parts)
    assert sizes is not None
    places = torch.arange(call.batch)
    if kind in ("too large", "below 0", "repeated", "swapped", "one order", "other order", "short order",
                "int32 order", "emptied order", "halved order") and order is None:  # fmt: skip
        order, inverse = guarded.tensor(places), guarded.tensor(places)
    match kind:
        case "strided sizes" | "sliced sizes" | "emptied sizes" | "halved sizes":
            sizes = laid(parts[0], torch.int64, kind.split()[0])
        case "int32 sizes":
            sizes = guarded.tensor(parts[0].int())
        case "float sizes":
            sizes = guarded.tensor(parts[0].double())
        case "growing":
            sizes[-1] += sizes[0] + 1
        case "zero":
            sizes = guarded.tensor(torch.cat([parts[0], parts[0][:1] * 0]))
        case "negative":
            sizes = guarded.tensor(torch.cat([parts[0], torch.tensor([1, -1])]))
        case "few rows":
            sizes = guarded.tensor(torch.cat([parts[0][:1], parts[0]]))
        case "many rows":
            sizes = guarded.tensor(torch.cat([parts[0][1:], parts[0][:0]])) if len(sizes) > 1 else sizes * 0
        case "huge":
            sizes[0] = 2**62
        case "wrapping":  # whose sum in 64 bits is that of the rows
            sizes = guarded.tensor(torch.cat([torch.tensor([2**62] * 4), parts[0]]))
        case "no sizes":
            sizes = sizes[:0]
        case "list sizes":
            return [parts[0].tolist(), order, inverse]
        case "sizes matrix":
            sizes = sizes.unsqueeze(0)
        case "too large":
            order[-1] = call.batch
        case "below 0":
            inverse[0] = -1
        case "repeated":
            order[:] = order[0]
            inverse[:] = inverse[0] + (call.batch == 1)
        case "swapped":
            order = order + 0
            inverse = inverse.roll(1) if call.batch > 1 else inverse + 1
        case "one order":
            inverse = None
        case "other order":
            order = None
        case "short order":
            order = order[1:]
        case "int32 order":
            order = guarded.tensor(order.int())
        case "emptied order" | "halved order":
            order = laid(order, torch.int64, kind.split()[0])
    return [sizes, order, inverse]
