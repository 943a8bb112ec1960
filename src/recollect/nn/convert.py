"""Swap torch.nn's recurrent layers for ours, in place, without touching what they have learned."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from recollect.nn.torch_compat import GRU, LSTM, RNN

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def convert(module: nn.Module) -> nn.Module:
    """Replace every ``torch.nn.RNN``, ``LSTM`` and ``GRU`` in a model by ours.

    The new layers hold the very same Parameter objects (a live optimiser goes on), hooks, mode and
    device. Containers are changed in place and returned; a bare layer is returned as a new module.
    Subclasses of torch's layers are left alone, with a warning that says which and why.

    Args:
        module: any module.

    Returns:
        The model with our layers in it.
    """
    # By identity, with the old module beside the new one: were it let go, a layer made later could get its id.
    seen: dict[int, tuple[nn.Module, nn.Module]] = {}

    def visit(each: nn.Module, path: str) -> nn.Module:
        if id(each) not in seen:
            seen[id(each)] = (each, _converted(each, path))
            # Not named_children, which lists a child that stands at two places only once.
            for name, child in list(each._modules.items()):
                if child is not None:
                    each._modules[name] = visit(child, f"{path}.{name}" if path else name)
        return seen[id(each)][1]

    return visit(module, "")


def _converted(module: nn.Module, path: str) -> nn.Module:
    if not isinstance(module, nn.RNNBase):
        return module
    makers = {nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU}
    if type(module) not in makers:
        why = "it is parametrised; convert it first" if is_parametrized(module) else "its class may do anything"
        what = f"{path or 'the layer'}, a {type(module).__name__}, as it is: {why}"
        warnings.warn(f"recollect.convert left {what}", stacklevel=4)
        return module
    own: dict[str, Any] = {"proj_size": module.proj_size} if isinstance(module, nn.LSTM) else {}
    if isinstance(module, nn.RNN):
        own["nonlinearity"] = module.nonlinearity
    new = makers[type(module)](
        module.input_size, module.hidden_size, module.num_layers, bias=module.bias, batch_first=module.batch_first,
        dropout=module.dropout, bidirectional=module.bidirectional, device=torch.device("meta"), **own,
    )  # fmt: skip
    for name, parameter in module._parameters.items():
        new._parameters[name] = parameter
    for name in _HOOKS:
        setattr(new, name, getattr(module, name))
    new.training = module.training
    return new
