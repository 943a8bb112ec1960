"""Read handwritten digits row by row: an 8 x 8 image is a sequence of 8 steps with 8 features.

A stratified quarter of scikit-learn's digits is held out; its split was fixed before anything was tuned.
Run it with ``python examples/digits_by_rows.py``.
"""

import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import recollect
from recollect import datasets

SPLIT_SEED = 20260101


class DigitReader(nn.Module):
    """A recurrent layer over the rows, and a linear head on what it remembers at the end."""

    def __init__(self, layer: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(hidden_size, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [B, 10] of images ``x`` [B, 8, 8]."""
        y, _ = self.layer(x)
        return self.head(y[:, -1])


def accuracy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The share of rows whose highest score is that of the class ``y``."""
    return (scores.argmax(1) == y).double().mean()


def main(kind: str = "LSTM", seed: int = 0, epochs: int = 40) -> float:
    """Train one network; return its accuracy on the held-out quarter."""
    images, labels = datasets.digits_rows()
    x_train, x_test, y_train, y_test = (
        torch.from_numpy(part)
        for part in train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=SPLIT_SEED)
    )
    torch.manual_seed(seed)
    model = DigitReader(getattr(recollect.nn, kind)(8, 64, batch_first=True), 64)
    batches = DataLoader(TensorDataset(x_train, y_train), batch_size=64, shuffle=True)
    recollect.training.train(
        model,
        batches,
        loss=nn.functional.cross_entropy,
        optimizer=torch.optim.Adam(model.parameters(), lr=4e-3),
        epochs=epochs,
        max_norm=1.0,
        seed=seed,
    )
    held_out = recollect.training.evaluate(
        model, [(x_test, y_test)], nn.functional.cross_entropy, metrics={"accuracy": accuracy}
    )
    return held_out.metrics["accuracy"]


if __name__ == "__main__":
    for name in ("LSTM", "GRU"):
        print(name, " ".join(f"{main(name, seed):.1%}" for seed in range(3)), "correct on held-out digits, three seeds")
