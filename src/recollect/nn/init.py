"""Ways to start the weights of a recurrent layer, each with the reason for it."""

from __future__ import annotations

import torch
from torch import nn

from recollect.errors import InputError
from recollect.nn.recurrent import Recurrent


def _each(layer: Recurrent, prefix: str) -> list[tuple[str, torch.Tensor]]:
    if not isinstance(layer, Recurrent):
        raise InputError(
            "this initialisation is for our recurrent layers",
            given=type(layer).__name__,
            expected="recollect.nn.Recurrent, RNN, LSTM or GRU",
            remedy="recollect.convert(model) swaps torch.nn's layers for ours",
        )
    return [(name, parameter) for name, parameter in layer.named_parameters() if name.startswith(prefix)]


@torch.no_grad()
def orthogonal_(layer: Recurrent, gain: float = 1.0) -> Recurrent:
    """Make each gate's H x H block of W_hh orthogonal times ``gain``; returns the layer.

    An orthogonal matrix keeps every vector's length, so the linear part of a step neither shrinks nor
    grows the gradient (Saxe, McClelland & Ganguli 2014).
    """
    for _, weight in _each(layer, "weight_hh"):
        for block in weight.chunk(len(layer.cell.gates)):
            nn.init.orthogonal_(block, gain)
    return layer


@torch.no_grad()
def forget_bias_(layer: Recurrent, value: float = 1.0) -> Recurrent:
    """Set the bias of gate ``f`` to ``value`` (all of it in b_ih, 0 in b_hh); returns the layer.

    With 1 the gate starts mostly open and the state is kept for long (Gers, Schmidhuber & Cummins 2000;
    Jozefowicz, Zaremba & Sutskever 2015).

    Raises:
        InputError: the cell has no gate called ``f``, or the layer no biases.
    """
    biases = _each(layer, "bias_")
    if "f" not in layer.cell.gates or not layer.bias:
        raise InputError(
            "this layer has no forget-gate bias",
            given=f"gates {' '.join(layer.cell.gates)!r}, bias={layer.bias}",
            expected="a gate called f, and bias=True",
        )
    place = layer.cell.gates.index("f")
    for name, bias in biases:
        bias.chunk(len(layer.cell.gates))[place].fill_(value if name.startswith("bias_ih") else 0.0)
    return layer


@torch.no_grad()
def identity_(layer: Recurrent, scale: float = 1.0) -> Recurrent:
    """Start W_hh at ``scale`` times the identity and the biases at 0; returns the layer.

    For ReLU this is the IRNN of Le, Jaitly & Hinton (2015): without input the state stays as it is.
    """
    for _, weight in _each(layer, "weight_hh"):
        for block in weight.chunk(len(layer.cell.gates)):
            nn.init.eye_(block).mul_(scale)
    for _, bias in _each(layer, "bias_"):
        bias.zero_()
    return layer
