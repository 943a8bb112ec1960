"""Predict the cosine from the sine, with the state carried from batch to batch.

At any moment the sine alone does not tell the cosine: rising or falling, the network has to remember. The
stream is cut into chunks of 20 steps; the state goes on from chunk to chunk, the gradient does not
(truncated back-propagation through time). Run it with ``python examples/sine_to_cosine.py``.
"""

import torch
from torch import nn

import recollect
from recollect import datasets


def main(chunks: int = 600, seed: int = 0) -> float:
    """Train on one pass over the stream; return the mean squared error over its last 50 chunks."""
    torch.manual_seed(seed)
    sine, cosine = datasets.sine_to_cosine(chunks, 20, seed)  # [chunks, T, B = 1, 1]
    x = torch.from_numpy(sine).flatten(0, 1)
    y = torch.from_numpy(cosine).flatten(0, 1)

    rnn = recollect.nn.RNN(input_size=1, hidden_size=32)
    head = nn.Linear(32, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)

    state, errors = None, []
    for x_chunk, y_chunk in recollect.tbptt(x, y, window=20):
        output, state = rnn(x_chunk, recollect.detach_state(state))
        loss = nn.functional.mse_loss(head(output), y_chunk)
        optimizer.zero_grad()
        loss.backward()  # compute the gradients,
        recollect.clip_by_global_norm(parameters, max_norm=1.0)  # clip them,
        optimizer.step()  # apply them
        errors.append(loss.item())
    return sum(errors[-50:]) / 50


if __name__ == "__main__":
    print(f"mean squared error over the last 1,000 steps: {main():.5f}  (the cosine's own variance is 0.5)")
