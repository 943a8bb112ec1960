"""A module's answer to torch's other readers of a model: torch.fx, TorchScript and the ONNX exporters."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
from torch import fx, nn

from recollect.errors import InputError, NotYetError


def tracer_of(x: Any, state: Any) -> fx.Tracer | None:
    """The torch.fx tracer whose stand-ins a call is made with, or None."""
    first = state[0] if type(state) in (tuple, list) and state else state
    proxy = x if isinstance(x, fx.Proxy) else first
    return proxy.tracer if isinstance(proxy, fx.Proxy) else None  # pyright: ignore[reportReturnType]


def as_node(tracer: fx.Tracer, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> fx.Proxy:
    """The call of a module as one node of the graph that torch.fx writes down.

    torch.fx takes each module of torch.nn as one node and looks inside all others, where sizes are wanted that its
    stand-ins do not have. Its tracer knows torch.nn by the name of a class's file, so ours say it themselves.

    Args:
        arguments: of the call, by position.
        options: of the call, by keyword; those that are None or False are left out.

    Raises:
        InputError: the module is the whole of what is traced, or has hooks, which would run now and with the node.
    """
    if module is tracer.root:
        raise InputError(
            "torch.fx takes a recurrent module as one node of a graph, so it cannot be the whole graph",
            given=type(module).__name__,
            expected="a model with the module in it",
            remedy="torch.fx.symbolic_trace(torch.nn.Sequential(module))",
        )
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise InputError(
            "torch.fx runs a module's hooks while it traces, and the graph would run them once more",
            given=f"a {type(module).__name__} with hooks",
            remedy="a torch.fx.Tracer whose is_leaf_module is True for recollect.nn's modules; or hooks after tracing",
        )
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)


class RefusesScripts(nn.Module):
    """A module that says so where TorchScript or the ONNX exporter that builds on it would fail without a remedy."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise InputError; torch.jit.script asks before it reads a module's code."""
        raise InputError(
            "torch.jit.script cannot compile a recurrent module of ours, whose kernels it does not know",
            given=type(self).__name__,
            remedy="torch.export.export(model, ...) for a program; recollect.save and recollect.stream.Stepper to run "
            "without torch",
        )

    def _slow_forward(self, *arguments: Any, **options: Any) -> Any:
        # What a call runs under torch.jit's tracer, on which the older exporter builds. That gives all arguments by
        # position, which forward does not take, so it is too late to refuse it there.
        refuse_onnx()
        return super()._slow_forward(*arguments, **options)


def refuse_onnx() -> None:
    """Raise NotYetError where torch.onnx.export is what traces a call."""
    if torch.compiler.is_dynamo_compiling():
        return  # torch.compile's own; it cannot look into sys.modules, and no exporter reads what it makes of a module
    # torch loads its exporters when they are first used.
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        raise NotYetError(
            "the export of recurrent modules to ONNX is not built yet",
            remedy="load the state_dict into torch.nn's layers and export those; or torch.export.export(model, ...); "
            "or recollect.save and recollect.stream.Stepper",
        )
