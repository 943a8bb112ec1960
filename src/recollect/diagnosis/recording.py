"""Run a model once, forwards and backwards, and keep the gradient of every state at every step.

All of it happens on a deep copy in float64, so nothing of the user's is touched.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from recollect.diagnosis.objective import objective
from recollect.engine import dispatch
from recollect.engine.reference import Tap
from recollect.errors import InputError, RecollectError
from recollect.nn import Recurrent, convert

# Of one layer and direction, in the order of processing: the step in time and its states, [rows, H] each.
States = list[tuple[int, tuple[Tensor, ...]]]


@dataclass(eq=False)
class Call:
    """The last time that one recurrent layer ran.

    Attributes:
        path: the module's path in the model, "" for a bare layer.
        layer: the module, in the copy.
        batch, steps: B and T of its input.
        lengths: [B] valid steps of each row in the model's own order; None where all steps are valid.
        ragged: the layer itself was told the lengths, so its rows are sorted by them.
        unbatched: the input was a single sequence without a batch dimension.
        times: how often the layer has run by then.
        states: what left each step; by label of layer and direction, such as "l1_reverse".
        gradients: dL/ds in the places of ``states``.
    """

    path: str
    layer: Recurrent
    batch: int
    steps: int
    lengths: Tensor | None
    ragged: bool
    unbatched: bool
    times: int
    states: dict[str, States] = field(default_factory=dict)
    gradients: dict[str, list[tuple[Tensor, ...]]] = field(default_factory=dict)


def record(model: nn.Module, x: Any, target: Any, loss: Any, lengths: Any) -> tuple[list[Call], float]:
    """Run a copy of ``model`` on ``x`` and take the gradient of L with respect to all states.

    Returns:
        The last call of each recurrent layer, the last to run at the end; and L.

    Raises:
        InputError: the model cannot be copied or run, has no recurrent layer, holds or meets numbers that
            are not finite, or L does not depend on a recurrent state.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            "diagnose takes a model",
            given=type(model).__name__,
            expected="a torch.nn.Module with a recurrent layer",
            remedy="of a fitted Forecaster, pass forecaster.network_",
        )
    with _apart_from_the_caller(model):
        twin = _twin(model)
        recorder = _Recorder(twin)
        arguments = x if isinstance(x, tuple) and not isinstance(x, PackedSequence) else (x,)
        keywords = {}
        if lengths is not None:
            if isinstance(x, PackedSequence):
                raise InputError("a PackedSequence has its lengths already", given="lengths=", remedy="leave it out")
            with _explained("lengths must be whole numbers, one for each row"):
                lengths = torch.as_tensor(lengths).clone()
            if "lengths" in inspect.signature(twin.forward).parameters:
                keywords["lengths"] = lengths
        with dispatch.listening(recorder.listen), _explained("the model could not run on a float64 copy of x"):
            output = twin(*map_tensors(_own, arguments), **keywords)
        calls = list(recorder.calls.values())
        if not calls:
            raise InputError(
                "no recurrent layer of the model ran",
                given=f"{len(recorder.paths)} recurrent layer(s): {', '.join(recorder.paths)}",
                expected="a forward pass that calls one",
                remedy="call the layer as self.rnn(x), not self.rnn.forward(x)",
            )
        for call in calls:
            _take_lengths(call, lengths)
        with _explained("the loss could not be computed"):
            value = objective(twin, output, map_tensors(_own, target), loss, calls[-1])
        _differentiate(calls, value)
    return calls, value.item()


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``change`` to every tensor in nested tuples, lists and dicts, and to a PackedSequence's data."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PackedSequence):
        return PackedSequence(change(value.data), *value[1:])
    if isinstance(value, tuple | list):
        changed = [map_tensors(change, each) for each in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    if isinstance(value, dict):
        return {key: map_tensors(change, each) for key, each in value.items()}
    return value


def _float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _own(tensor: Tensor) -> Tensor:
    """A copy that no in-place operation and no backward pass can carry to the caller's tensor."""
    return _float64(tensor.detach()).clone()


@contextmanager
def _apart_from_the_caller(model: nn.Module) -> Iterator[None]:
    """Gradients on whatever the caller's mode, and the random state and default dtype as they were after."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    before = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=list(devices)):
        # A forward pass that makes its own initial state with torch.zeros shall make it in float64.
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one sentence of ours."""
    try:
        yield
    except RecollectError:
        raise
    except Exception as error:
        raise InputError(
            what,
            given=f"{type(error).__name__}: {error}",
            remedy="see that model(x), or model(*x) for a tuple, and loss(output, target) run by themselves",
        ) from error


def _twin(model: nn.Module) -> nn.Module:
    """A deep copy in float64 and eval mode with torch.nn's layers converted."""
    # A state kept from the last forward pass is not a leaf, which deepcopy refuses.
    kept = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    with _explained("the model could not be copied"):
        twin = convert(copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})).double()
    # Only the way from the loss back to the states is wanted, so no gradient of a weight is computed.
    twin.eval().requires_grad_(False)
    for name, parameter in twin.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(
                "a weight is not finite",
                given=f"{int((~torch.isfinite(parameter)).sum())} of {parameter.numel()} values of {name}",
                expected="finite numbers",
                remedy="load the last good weights; recollect.clip_by_global_norm drops a gradient that is not finite",
            )
    return twin


class _Recorder:
    """Hooks on a model that know which layer runs, and taps that keep its states."""

    def __init__(self, model: nn.Module) -> None:
        layers = {path: module for path, module in model.named_modules() if isinstance(module, Recurrent)}
        if not layers:
            raise InputError(
                "the model has no recurrent layer to diagnose",
                given=type(model).__name__,
                expected="recollect.nn.Recurrent, RNN, LSTM, GRU, or torch.nn.RNN, LSTM, GRU",
            )
        self.paths = [path or "the model itself" for path in layers]
        self.calls: dict[str, Call] = {}
        self._running: Call | None = None
        for module in model.modules():
            module.register_forward_pre_hook(_to_float64, with_kwargs=True)
        for path, layer in layers.items():
            layer.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True)
            layer.register_forward_hook(self._leave)

    def _enter(self, path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, Recurrent)
        # An input that is no tensor is left to the layer, whose own error names it.
        x = args[0] if args else kwargs.get("x", kwargs.get("input"))
        batch = steps = 0
        lengths = kwargs.get("lengths")
        unbatched = False
        if isinstance(x, PackedSequence):
            lengths = pad_packed_sequence(x)[1]
            batch, steps = len(lengths), len(x.batch_sizes)
        elif isinstance(x, Tensor) and x.dim() == 2:
            batch, steps, unbatched = 1, x.shape[0], True
        elif isinstance(x, Tensor) and x.dim() == 3:
            batch, steps = x.shape[:2] if layer.batch_first else x.shape[1::-1]
        earlier = self.calls.pop(path, None)
        self.calls[path] = self._running = Call(
            path, layer, batch, steps,
            lengths=None if lengths is None else torch.as_tensor(lengths).long().cpu(),
            ragged=lengths is not None,
            unbatched=unbatched,
            times=earlier.times + 1 if earlier else 1,
        )  # fmt: skip

    def _leave(self, *_: object) -> None:
        self._running = None

    def listen(self, label: str) -> Tap | None:
        """Give the loop of one layer and direction its tap."""
        call = self._running
        if call is None:
            return None

        def tap(t: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # An alias parts what comes after the step and y_t from what used the state inside the step.
            cut = tuple(s.view_as(s) if s.requires_grad else s.detach().requires_grad_() for s in states)
            call.states.setdefault(label, []).append((t, cut))
            return cut

        return tap


def _to_float64(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A model may make float32 on its way, as ``one_hot(x, n).float()`` does; its layers are float64 here."""
    return map_tensors(_float64, args), map_tensors(_float64, kwargs)


def _take_lengths(call: Call, lengths: Tensor | None) -> None:
    """Count lags from the lengths that the user gave, where the layer itself has run over the padding."""
    if lengths is None or call.ragged:
        return
    whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if not whole or lengths.shape != (call.batch,) or lengths.min() < 0 or lengths.max() > call.steps:
        raise InputError(
            "lengths do not fit what the recurrent layer was given",
            given=lengths.tolist() if lengths.numel() <= 8 else f"{lengths.dtype} {tuple(lengths.shape)}",
            expected=f"{call.batch} whole number(s) from 0 to T = {call.steps}",
        )
    call.lengths = lengths.long().cpu()


def _differentiate(calls: list[Call], value: Tensor) -> None:
    """Fill in the gradients of all calls."""
    if not torch.isfinite(value):
        raise InputError(
            "the loss is not finite, so it has no gradient",
            given=f"{value.item()}; {_first_not_finite(calls) or 'all recurrent states are finite'}",
            expected="a finite loss",
            remedy="look for NaN and infinities in x, the target and the scale of the weights",
        )
    places = [(call, label, tap) for call in calls for label, taps in call.states.items() for tap in taps]
    flat = [state for _, _, (_, states) in places for state in states]
    found = torch.autograd.grad(value, flat, allow_unused=True) if value.requires_grad and flat else ()
    if all(gradient is None for gradient in found):
        raise InputError(
            "the loss does not depend on any recurrent state",
            given=f"L = {value.item():.6g}",
            expected="a loss of the recurrent layer's outputs or final states",
            remedy="look for detach(), torch.no_grad() or numpy between the layer and the loss, or lengths of 0",
        )
    remaining = iter(
        torch.zeros_like(state) if gradient is None else gradient for gradient, state in zip(found, flat, strict=True)
    )
    for call, label, (_, states) in places:
        call.gradients.setdefault(label, []).append(tuple(next(remaining) for _ in states))


def _first_not_finite(calls: list[Call]) -> str | None:
    for call in calls:
        for label, taps in call.states.items():
            for t, states in taps:
                for name, state in zip(call.layer.cell.states, states, strict=True):
                    if not torch.isfinite(state).all():
                        return f"the first state that is not finite is {join(call.path, label, name)} at step {t}"
    return None


def join(*parts: str) -> str:
    """A dotted name such as "rnn.l0.h", without empty parts."""
    return ".".join(part for part in parts if part)
