"""What is on a model while a step of its training is probed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from recollect.engine import dispatch
from recollect.engine.watched import Watched
from recollect.errors import InputError, NotYetError
from recollect.nn import Recurrent


class Hooks:
    """Those on one layer while a step is probed.

    A copy of the model that is made meanwhile, in memory or in a file, has hooks that do nothing.
    """

    def __init__(self, layer: nn.Module | None, path: str = "", see: Callable[[str, Watched], None] | None = None):
        self._layer, self._path, self._see = layer, path, see
        self._handles: list[Any] = []
        self._open: list[AbstractContextManager[None]] = []

    def attach(self) -> None:
        if not self._handles and self._layer is not None:
            self._handles = [
                self._layer.register_forward_pre_hook(self.enter),
                self._layer.register_forward_hook(self.leave, always_call=True),
            ]

    def detach(self) -> None:
        for each in self._handles:
            each.remove()
        self._handles = []

    def enter(self, layer: nn.Module, args: Any) -> None:
        if layer is self._layer and torch.is_grad_enabled():
            self._open.append(dispatch.watching(self._saw))
            self._open[-1].__enter__()

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        if layer is self._layer and self._open:
            self._open.pop().__exit__(None, None, None)

    def _saw(self, watched: Watched) -> None:
        assert self._see is not None
        self._see(self._path, watched)

    def __deepcopy__(self, memo: object) -> Hooks:
        return Hooks(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hooks, (None,)


def recurrent_layers(model: object) -> dict[str, Recurrent]:
    """The recurrent layers of a model by path, if they can be probed."""
    if not isinstance(model, nn.Module):
        raise InputError("a probe watches a model", given=type(model).__name__, expected="a torch.nn.Module")
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and not isinstance(module, Recurrent):
            raise InputError(
                "a probe cannot look into the recurrent layers of torch.nn",
                given=f"{path or 'the model'} is a torch.nn.{type(module).__name__}",
                expected="layers of recollect.nn",
                remedy="model = recollect.convert(model)",
            )
        if isinstance(module, Recurrent):
            found[path] = module
            if module.checkpoint is not None:
                raise NotYetError(
                    "layers that train in segments cannot be probed yet",
                    given=f"{path or 'the model'} has checkpoint={module.checkpoint!r}",
                    remedy="checkpoint=None",
                )
    if not found:
        raise InputError(
            "the model has no recurrent layer to probe",
            given=type(model).__name__,
            expected="recollect.nn.Recurrent, RNN, LSTM or GRU",
        )
    return found
