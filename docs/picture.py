"""Draw docs/gradient.svg, the picture at the top of the README: ``python docs/picture.py``.

The gradient of three cells, as they start, on its way back through a hundred steps of noise.
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

import recollect
from recollect import cells
from recollect.nn.init import forget_bias_, identity_, orthogonal_

STEPS, SIZE = 100, 64
CELLS = {
    "tanh RNN": (cells.rnn_tanh, None, "#b3413b"),
    "tanh RNN, orthogonal start": (cells.rnn_tanh, orthogonal_, "#d98a3d"),
    "ReLU RNN, W_hh = 1.05 identity": (cells.rnn_relu, lambda layer: identity_(layer, 1.05), "#7a5ba6"),
    "GRU": (cells.gru, None, "#7d8794"),
    "LSTM": (cells.lstm, None, "#4f8fc0"),
    "LSTM, forget bias 1": (cells.lstm, forget_bias_, "#2d6a4f"),
    "LSTM, forget bias 3": (cells.lstm, lambda layer: forget_bias_(layer, 3.0), "#1b4332"),
}


def main() -> None:
    """Diagnose each cell once and draw the curves."""
    plt.rcParams |= {"font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "recollect"}
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for name, (cell, start, colour) in CELLS.items():
        torch.manual_seed(0)
        layer = recollect.nn.Recurrent(cell, 8, SIZE)
        if start is not None:
            start(layer)
        curve = recollect.diagnose(layer, torch.randn(STEPS, 16, 8)).grad_norm_by_lag
        axes.semilogy(curve / curve[0], color=colour, label=name, linewidth=1.8)
    axes.axhline(0.01, color="#999", linewidth=0.8, linestyle=":")
    axes.set(xlabel="lag: steps back in time", ylabel="|dL/dh|, 1 at lag 0", ylim=(1e-12, 1e3), xlim=(0, STEPS - 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(Path(__file__).with_name("gradient.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
