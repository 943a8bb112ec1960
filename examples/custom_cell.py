"""A cell of one's own, on the adding problem: add the two marked numbers among fifty.

The cell is one time step in plain PyTorch; forward and backward kernels are derived from it. Whoever
always answers 1, the mean, has an error of 0.167. Run it with ``python examples/custom_cell.py``.
"""

import torch
from torch import nn

import recollect
from recollect import datasets

STEPS = 50


@recollect.cell(gates="u n", states="h c")
def blend(inp, rec, prev):
    r"""A state that moves towards a candidate n, where the gate u says how far.

    .. math:: c_t = c_{t-1} + \sigma(u_t) \, (\tanh(n_t) - c_{t-1}), \quad h_t = \tanh(c_t)
    """
    u = torch.sigmoid(inp.u + rec.u)
    n = torch.tanh(inp.n + rec.n)
    c = prev.c + u * (n - prev.c)
    return torch.tanh(c), c


def main(updates: int = 700, seed: int = 0) -> float:
    """Train on ever new samples; return the mean squared error on fresh ones."""
    torch.manual_seed(seed)
    layer = recollect.nn.Recurrent(blend, input_size=2, hidden_size=64, batch_first=True)
    head = nn.Linear(64, 1)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for update in range(updates):
        x, y = map(torch.from_numpy, datasets.adding(64, STEPS, seed=seed * 1_000_000 + update))
        output, _ = layer(x)
        loss = nn.functional.mse_loss(head(output[:, -1]), y)
        optimizer.zero_grad()
        loss.backward()
        recollect.clip_by_global_norm(parameters, max_norm=1.0)
        optimizer.step()
    x, y = map(torch.from_numpy, datasets.adding(2000, STEPS, seed=987_654_321 + seed))
    with torch.inference_mode():
        return nn.functional.mse_loss(head(layer(x)[0][:, -1]), y).item()


if __name__ == "__main__":
    print(f"mean squared error on fresh samples: {main():.4f}  (0.167 for whoever always answers 1)")
