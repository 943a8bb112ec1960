"""The small model that tests of diagnosis look at: a head on a recurrent layer's last output."""

from torch import nn


class LastStep(nn.Module):
    """A layer as ``rnn``, so that its path in the model is not empty, and a head; the layer's layout is the model's."""

    def __init__(self, rnn, outputs=1):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, outputs)

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.head(y[:, -1] if self.rnn.batch_first else y[-1])
