"""A twin of the user's model: whatever is done with it, nothing of the user's changes."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from recollect.diagnosis.runs.call import Call
from recollect.diagnosis.runs.objective import objective
from recollect.errors import InputError, RecollectError
from recollect.nn import Recurrent, convert


class Twin:
    """A deep copy of a model, in eval mode and float64, with ``torch.nn``'s recurrent layers converted.

    Work with it inside of `apart_from_the_caller`.

    Args:
        model: the user's.
        x: what its forward takes: a tensor, a PackedSequence, or a tuple for ``model(*x)``.
        lengths: [B] valid steps of each row; handed to a forward that takes ``lengths``.

    Attributes:
        model: the copy; its parameters ask for no gradient.
        paths: of its recurrent layers.
        calls: after `run`, the last call of each recurrent layer, the last to run at the end.
        running: the call under way.

    Raises:
        InputError: the model cannot be copied or has no recurrent layer, or a weight is not finite.
    """

    def __init__(self, model: nn.Module, x: Any, lengths: Any = None) -> None:
        self.model = _copy(model)
        layers = {path: module for path, module in self.model.named_modules() if isinstance(module, Recurrent)}
        if not layers:
            raise InputError(
                "the model has no recurrent layer to diagnose",
                given=type(model).__name__,
                expected="recollect.nn.Recurrent, RNN, LSTM, GRU, or torch.nn.RNN, LSTM, GRU",
            )
        self.paths = [path or "the model itself" for path in layers]
        self._calls: dict[str, Call] = {}
        self.running: Call | None = None
        self._hooks = [
            module.register_forward_pre_hook(_to_float64, with_kwargs=True) for module in self.model.modules()
        ]
        for path, layer in layers.items():
            self._hooks.append(layer.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._leave))

        self._arguments = x if isinstance(x, tuple) and not isinstance(x, PackedSequence) else (x,)
        self._keywords, self._lengths = {}, None
        if lengths is not None:
            if isinstance(x, PackedSequence):
                raise InputError("a PackedSequence has its lengths already", given="lengths=", remedy="leave it out")
            with explained("lengths must be whole numbers, one for each row"):
                self._lengths = torch.as_tensor(lengths).clone()
            if "lengths" in inspect.signature(self.model.forward).parameters:
                self._keywords["lengths"] = self._lengths

    def remove_hooks(self) -> None:
        """Leave ``model`` as a plain module, which knows nothing of this twin."""
        for hook in self._hooks:
            hook.remove()

    @property
    def calls(self) -> list[Call]:
        return list(self._calls.values())

    @property
    def x(self) -> Tensor | PackedSequence:
        """A copy of the model's input proper: the first tensor among its arguments.

        Raises:
            InputError: there is none.
        """
        return map_tensors(_own, self._arguments[self._place_of_x])

    @property
    def _place_of_x(self) -> int:
        for place, each in enumerate(self._arguments):
            if isinstance(each, Tensor | PackedSequence):
                return place
        raise InputError(
            "x holds no input whose steps could be told apart",
            given=", ".join(type(each).__name__ for each in self._arguments),
            expected="a tensor or PackedSequence, or a tuple with one",
        )

    @property
    def takes_any_batch(self) -> bool:
        """Whether x and lengths are all that the model takes, so that a batch may hold x several times."""
        return len(self._arguments) == 1 and isinstance(self._arguments[0], Tensor)

    def run(self, x: Tensor | PackedSequence | None = None, copies: int = 1) -> Any:
        """Call the model on a copy of x, and return what it returns.

        Args:
            x: given to the model itself, in place of a copy of `x`.
            copies: how often ``x`` holds the batch, one after the other.

        Raises:
            InputError: the model cannot run, no recurrent layer ran, or lengths do not fit the layer.
        """
        self._calls.clear()
        arguments, keywords, lengths = list(map_tensors(_own, self._arguments)), dict(self._keywords), self._lengths
        if x is not None:
            arguments[self._place_of_x] = x
        if lengths is not None and copies > 1:
            lengths = lengths.repeat(copies)
            keywords = dict.fromkeys(keywords, lengths)
        with explained("the model could not run on a float64 copy of x"):
            output = self.model(*arguments, **keywords)
        if not self._calls:
            raise InputError(
                "no recurrent layer of the model ran",
                given=f"{len(self.paths)} recurrent layer(s): {', '.join(self.paths)}",
                expected="a forward pass that calls one",
                remedy="call the layer as self.rnn(x), not self.rnn.forward(x)",
            )
        if lengths is not None:
            for call in self.calls:
                call.take_lengths(lengths)
        return output

    def loss(
        self, output: Any, target: Any, loss: Callable[[Any, Any], Tensor] | None, *, times_batch: bool = True
    ) -> Tensor:
        """L of what `run` returned; see `objective`.

        Raises:
            InputError: it cannot be computed.
        """
        with explained("the loss could not be computed"):
            target = map_tensors(_own, target)
            return objective(self.model, output, target, loss, self.calls[-1], times_batch=times_batch)

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
        earlier = self._calls.pop(path, None)
        self._calls[path] = self.running = Call(
            path, layer, batch, steps,
            lengths=None if lengths is None else torch.as_tensor(lengths).long().cpu(),
            ragged=lengths is not None,
            unbatched=unbatched,
            times=earlier.times + 1 if earlier else 1,
            x=map_tensors(Tensor.detach, x),
        )  # fmt: skip

    def _leave(self, *_: object) -> None:
        self.running = None


class _Float64ByDefault:
    """A forward pass that makes its own initial state with torch.zeros shall make it in float64.

    The default is the process's: of several threads the first sets it and the last puts back what was there.
    """

    def __init__(self) -> None:
        self._lock, self._blocks, self._before = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float64)
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                torch.set_default_dtype(self._before)


_float64_by_default = _Float64ByDefault()


@contextmanager
def apart_from_the_caller(model: nn.Module) -> Iterator[None]:
    """Gradients on whatever the caller's mode, and the random state and default dtype as they were after.

    Raises:
        InputError: ``model`` is none.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            "diagnose takes a model",
            given=type(model).__name__,
            expected="a torch.nn.Module with a recurrent layer",
            remedy="of a fitted Forecaster, pass forecaster.network_",
        )
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    forked = torch.random.fork_rng(devices=list(devices))
    with torch.inference_mode(False), torch.enable_grad(), forked, _float64_by_default:
        yield


@contextmanager
def explained(what: str) -> Iterator[None]:
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


def _to_float64(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A model may make float32 on its way, as ``one_hot(x, n).float()`` does; its layers are float64 here."""
    return map_tensors(_float64, args), map_tensors(_float64, kwargs)


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        InputError: the model cannot be copied.
    """
    # A state kept from the last forward pass is not a leaf, which deepcopy refuses.
    kept = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    with explained("the model could not be copied"):
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy in float64 and eval mode with torch.nn's layers converted."""
    with explained("the model could not be copied"):
        twin = convert(duplicate(model)).double()
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
