"""Why gradients are clipped: the error surface of a single recurrent unit, and training that meets its cliff.

One unit, ``h' = sigmoid(w h + b)``, shall be at 0.7 after 50 steps. Where its lower resting point vanishes, the loss
falls off a wall, along which the best weights lie. Gradient descent that comes there is thrown out of the picture;
with its gradient clipped it goes along the wall to the bottom (R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of
training recurrent neural networks", ICML 2013, figure 6). Run it with ``python examples/error_surface.py``.
"""

from pathlib import Path

import torch
from torch import nn

import recollect
from recollect.diagnosis import ErrorSurface, error_surface

REPORT = Path("out") / "error_surface.html"


@recollect.cell(gates="h", states="h")
def rnn_sigmoid(inp, rec, prev):
    """A recurrent layer with the logistic function."""
    return torch.sigmoid(inp.h + rec.h)


def loss(output, _):
    h, _final = output
    return (h[-1] - 0.7).square().mean()


def main(report: Path = REPORT) -> ErrorSurface:
    """Compute the surface and write the picture."""
    layer = recollect.nn.Recurrent(rnn_sigmoid, input_size=1, hidden_size=1)
    for name, value in {"weight_hh_l0": 5.5, "bias_ih_l0": -3.2, "bias_hh_l0": 0.0}.items():
        nn.init.constant_(layer.get_parameter(name), value)
    surface = error_surface(
        layer, torch.zeros(50, 1, 1), loss=loss, ranges=((4, 6.5), (-3.5, -1.5)),
        start=(5.5, -3.2), steps=150, learning_rate=0.5, max_norm=0.1,
    )  # fmt: skip
    report.parent.mkdir(parents=True, exist_ok=True)
    surface.to_html(report)
    return surface


if __name__ == "__main__":
    print(main())
    print(f"the picture is in {REPORT}")
