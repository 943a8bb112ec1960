"""Where the numbers go bad: the layer, time step and row at which a batch first stops being finite.

The batch is run once more, with hooks on every module. On the way forward the first event that is not
finite, in the order of execution, names the layer; where all is finite up to the loss, the first one on
the way back does. Nothing is known of a module but what it shows: its inputs and outputs, their gradients,
and ``batch_first`` and ``bidirectional`` where it has them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect.training.batches import Batch, Group, device_of, moved
from recollect.training.nested import mapped, tensors
from recollect.training.place import NOWHERE, Place, Places, is_bad, is_sequence_layer

_CLEAN_DATA = "look for NaN and inf in the data, and fill or leave out what is missing"
_LOOK_AT_LOSS = "look for a division by 0, sqrt(0), log(0) or an overflow in the loss, or lower the learning rate"
_LESS_STEEP = "lower the learning rate, clip with a smaller max_norm, or scale inputs and targets"


@dataclass(frozen=True)
class Culprit:
    """What first stopped being finite.

    Attributes:
        what: a phrase such as ``"the output of layer 'rnn' (LSTM)"``.
        value: ``"nan"``, ``"inf"`` or ``"-inf"``; empty where nothing could be named.
        layer: the module's name in the model, ``""`` for the model itself; None where it is no layer.
        place: the time step and row, as far as they can be told.
        remedy: what to do about it.
    """

    what: str
    value: str = ""
    layer: str | None = None
    place: Place = NOWHERE
    remedy: str = _LESS_STEEP

    def __str__(self) -> str:
        return f"{self.what} is {self.value}{self.place}" if self.value else self.what


def find_culprit(model: nn.Module, group: Group, loss: Callable[[Any, Any], Tensor]) -> Culprit:
    """Run the batches of a bad step once more and say where they first stop being finite.

    Weights and buffers are left as they are, gradients are dropped. A model that cannot be watched is
    reported as such: this never hides the error that it explains.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if _is_bad(tensor):
            kind = "weight" if isinstance(tensor, nn.Parameter) else "buffer"
            remedy = f"begin again from finite weights; {_LESS_STEEP}"
            return Culprit(f"the {kind} {name!r}", _bad_value(tensor), name.rpartition(".")[0], remedy=remedy)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for batch in moved(group, device_of(model)):
            culprit = _Watch(model, batch).run(loss)
            if culprit is not None:
                return culprit
        return Culprit("no layer can be named: run again, the batch was finite")
    except Exception as error:  # anything that the model's own code does under hooks it was not made for
        return Culprit(f"no layer can be named: run again under hooks, the batch ended in {type(error).__name__}")
    finally:
        model.zero_grad()
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)


@dataclass(frozen=True)
class _Call:
    """The ``number``-th call of a module, made by code of module ``parent``, after ``events`` bad events."""

    module: nn.Module
    number: int | None = None
    parent: nn.Module | None = None
    events: int = 0


class _Watch:
    """One run of one batch under hooks, which note what is not finite in the order in which it happens."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._names = {module: name for name, module in model.named_modules()}
        self._calls = dict.fromkeys(self._names, 0)
        self._open: list[_Call] = []
        self._places = Places(model, batch.samples)
        self._forward: list[tuple[_Call, Culprit]] = []
        self._backward: list[tuple[_Call, Culprit]] = []
        self._given_bad: dict[nn.Module, Culprit] = {}

    def run(self, loss: Callable[[Any, Any], Tensor]) -> Culprit | None:
        x, kwargs, y, _ = self._batch
        for _, value in tensors(x):
            self._places.saw_sequence(value)
        with self._hooks(), torch.enable_grad():
            value = loss(self._model(x, **kwargs), y)
            if self._forward:
                call, culprit = self._forward[0]
                made_outside = call.parent is None or culprit.layer != self._names[call.module]
                return (made_outside and self._bad_input()) or self._with_call_as_step(call, culprit)
            for path, part in tensors(y):
                if _is_bad(part):
                    index = is_bad(_data(part)).nonzero()[0].tolist()
                    return Culprit(f"the target y{path}, at index {index},", _bad_value(part), remedy=_CLEAN_DATA)
            if _is_bad(value):
                return Culprit("the loss, of a finite output,", _bad_value(value), remedy=_LOOK_AT_LOSS)
            value.backward()
        return self._first_on_the_way_back() or self._bad_input()

    def _bad_input(self) -> Culprit | None:
        """Not the first question: what is bad in padding, and masked, reaches nothing."""
        for name, value in {"x": self._batch.x, **self._batch.kwargs}.items():
            for path, part in tensors(value, name):
                if _is_bad(part):
                    return Culprit(f"the input {path}", _bad_value(part), None, self._places.first(part), _CLEAN_DATA)
        return None

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module, name in self._names.items():
                enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                leave = module.register_forward_hook(self._leave)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
                for own, parameter in module.named_parameters(recurse=False):
                    if parameter.requires_grad:
                        what = f"the gradient of weight {(f'{name}.' if name else '') + own!r}"
                        note = self._noter(_Call(module), Culprit(what, layer=name))
                        stack.callback(parameter.register_hook(note).remove)
            yield

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        parent = self._open[-1].module if self._open else None
        call = _Call(module, self._calls[module], parent, len(self._forward))
        self._calls[module] += 1
        self._open.append(call)
        given = [value for _, value in tensors((args, kwargs))]
        if given and is_sequence_layer(module):
            self._places.saw_sequence(given[0], module)
        if parent is not None:
            # A layer that had made it would have been noted before: it comes from the code between them.
            what = f"what {self._title(parent)} computes itself and gives to {self._title(module)}"
            self._note_forward(call, given, what, what, self._names[parent])
            for _, culprit in self._forward[call.events :]:
                self._given_bad.setdefault(module, culprit)
        culprit = Culprit(f"the gradient on its way back through {self._title(module)}", layer=self._names[module])
        return self._watched((args, kwargs), call, culprit, inward=True)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self._open.pop()
        made = [value for _, value in tensors(output)]
        if not any(map(_is_bad, made)):
            # What was bad inside, such as a mask of -inf, or padding, came to nothing.
            del self._forward[call.events :]
        title = self._title(module) + _inner_layer(module, made)
        self._note_forward(call, made, f"the output of {title}", f"the final state of {title}", self._names[module])
        if call.parent is None:
            culprit = Culprit("the gradient of the loss with respect to the model's output", remedy=_LOOK_AT_LOSS)
        else:
            what = f"the gradient that {self._title(call.parent)} computes itself, after {self._title(module)},"
            culprit = Culprit(what, layer=self._names[call.parent])
        return self._watched(output, call, culprit, inward=False)

    def _note_forward(self, call: _Call, values: list[Any], sequence: str, state: str, layer: str) -> None:
        for number, value in enumerate(values):
            if _is_bad(value):
                is_state = number > 0 and is_sequence_layer(call.module)
                place = self._places.in_state(value) if is_state else self._places.first(value, call.module)
                self._forward.append((call, Culprit(state if is_state else sequence, _bad_value(value), layer, place)))

    def _watched(self, values: Any, call: _Call, culprit: Culprit, *, inward: bool) -> Any:
        """The same values, as tensors whose gradients are of this call alone and are noted where they are bad."""
        number = itertools.count()

        def watch(value: Tensor | PackedSequence) -> Any:
            is_state = next(number) > 0 and is_sequence_layer(call.module)
            tensor = _data(value)
            if not tensor.requires_grad:
                if not inward or not tensor.is_floating_point():
                    return value
                # The gradient of the data shows how far back in time the rot goes.
                tensor = tensor.detach().requires_grad_()
            tensor = tensor.clone()
            if tensor.requires_grad:  # not in a part that the model runs under no_grad
                tensor.register_hook(self._noter(call, culprit, value, is_state))
            return _with_data(value, tensor)

        return mapped(watch, values)

    def _noter(
        self, call: _Call, culprit: Culprit, like: Tensor | PackedSequence | None = None, is_state: bool = False
    ) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            if _is_bad(gradient):
                place = NOWHERE
                if is_state:
                    place = self._places.in_state(gradient)
                elif like is not None:
                    place = self._places.last(_with_data(like, gradient), call.module)
                self._backward.append((call, replace(culprit, value=_bad_value(gradient), place=place)))

        return note

    def _first_on_the_way_back(self) -> Culprit | None:
        if not self._backward:
            return None
        call, culprit = self._backward[0]
        if call.parent is None and culprit.place == NOWHERE:
            # A weight's gradient is summed over time. That of the layer's input comes later and knows the step.
            for other, later in self._backward:
                if other.module is call.module and later.layer == culprit.layer and later.place != NOWHERE:
                    return self._with_call_as_step(other, later)
            # Only the weight's is bad. It is a product with the layer's input: tanh may have hidden an inf in that.
            outer_first = (given for module, given in self._given_bad.items() if call.module in module.modules())
            given = next(outer_first, None)
            if call.module is self._model or given is not None:
                return self._bad_input() or given or culprit
        return self._with_call_as_step(call, culprit)

    def _with_call_as_step(self, call: _Call, culprit: Culprit) -> Culprit:
        # A cell that is called once for each time step: the number of the call is the step.
        if culprit.place.step is None and self._calls[call.module] > 1 and not is_sequence_layer(call.module):
            return replace(culprit, place=replace(culprit.place, step=call.number))
        return culprit

    def _title(self, module: nn.Module) -> str:
        name, kind = self._names[module], type(module).__name__
        return f"layer {name!r} ({kind})" if name else f"the model ({kind})"


def _inner_layer(module: nn.Module, made: list[Any]) -> str:
    """The lowest layer in a stack whose final state went bad, named as in its weights."""
    if not is_sequence_layer(module) or getattr(module, "num_layers", 1) == 1:
        return ""
    states = [state for state in made[1:] if isinstance(state, Tensor) and _is_bad(state)]
    first = min((int(is_bad(state).flatten(1).any(1).nonzero()[0]) for state in states), default=None)
    return "" if first is None else f", from l{first // (2 if getattr(module, 'bidirectional', False) else 1)} on,"


def _data(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def _with_data(value: Tensor | PackedSequence, data: Tensor) -> Tensor | PackedSequence:
    return PackedSequence(data, *value[1:]) if isinstance(value, PackedSequence) else data


def _is_bad(value: Tensor | PackedSequence) -> bool:
    return bool(is_bad(_data(value)).any())


def _bad_value(value: Tensor | PackedSequence) -> str:
    tensor = _data(value).detach()
    return str(tensor[is_bad(tensor)][0].item())
