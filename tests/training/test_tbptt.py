"""Truncated backpropagation: literally which steps receive gradient, and in what order things happen."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from recollect.errors import InputError, NotYetError
from recollect.training import clip_by_global_norm, detach_state, tbptt


def linear_cell(x, h, a):
    """h' = a h + x, one step after the other; returns the outputs and the last state."""
    outputs = []
    for x_t in x:
        h = a * h + x_t
        outputs.append(h)
    return torch.stack(outputs), h


def chunk_losses(x, window, a):
    h = torch.zeros(())
    for x_chunk, y_chunk in tbptt(x, torch.zeros_like(x), window):
        outputs, h = linear_cell(x_chunk, h, a)
        yield (outputs - y_chunk).sum()
        h = detach_state(h)


def steps_with_gradient(x, loss):
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    return gradient.nonzero().flatten().tolist()


def test_which_steps_receive_gradient():
    x = torch.ones(7, requires_grad=True)
    received = [steps_with_gradient(x, loss) for loss in chunk_losses(x, window=3, a=torch.tensor(0.5))]
    assert received == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_state_is_carried_although_it_is_cut():
    x = torch.arange(1.0, 8.0)
    chunked = torch.stack(list(chunk_losses(x, window=3, a=torch.tensor(0.5)))).sum()
    whole, _ = linear_cell(x, torch.zeros(()), torch.tensor(0.5))
    torch.testing.assert_close(chunked, whole.sum(), rtol=0, atol=0)


def test_the_gradient_of_the_weight_in_closed_form():
    # x = 1, window 2: h = 1, 1+a, then from the carried 1+a, as a constant: a(1+a)+1, a(a(1+a)+1)+1.
    a = torch.tensor(0.5, requires_grad=True)
    first, second = chunk_losses(torch.ones(4), window=2, a=a)
    carried = 1.5
    assert torch.autograd.grad(first, a)[0].item() == 1.0
    assert torch.autograd.grad(second, a)[0].item() == carried + (2 * 0.5 * carried + 1)


@pytest.mark.parametrize("window", [7, 8, 1000])
def test_a_window_over_the_whole_sequence_is_full_bptt(window):
    torch.manual_seed(0)
    rnn = nn.LSTM(3, 4)
    x, y = torch.randn(7, 2, 3), torch.randn(7, 2, 4)
    full = torch.autograd.grad((rnn(x)[0] - y).square().mean(), list(rnn.parameters()))
    (chunk,) = tbptt(x, y, window)
    truncated = torch.autograd.grad((rnn(chunk[0])[0] - chunk[1]).square().mean(), list(rnn.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(full, truncated, strict=True))


def test_the_order_of_events():
    events = []

    class RecordedSGD(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            events.append("zero_grad")
            super().zero_grad(set_to_none)

        def step(self, closure=None):
            events.append("step")
            return super().step(closure)

    torch.manual_seed(0)
    rnn = nn.RNN(1, 2)
    optimizer = RecordedSGD(rnn.parameters(), lr=0.1)
    state = None
    x = torch.randn(5, 1, 1)
    for number, (x_chunk, y_chunk) in enumerate(tbptt(x, x.expand(5, 1, 2), window=2)):
        optimizer.zero_grad()
        output, state = rnn(x_chunk, state)
        output.register_hook(lambda _, number=number: events.append(f"backward {number}"))
        (output - y_chunk).square().mean().backward()
        events.append(f"clip {number}: {clip_by_global_norm(rnn.parameters(), 1e-3).clipped}")
        optimizer.step()
        state = detach_state(state)
    assert events == [
        *("zero_grad", "backward 0", "clip 0: True", "step"),
        *("zero_grad", "backward 1", "clip 1: True", "step"),
        *("zero_grad", "backward 2", "clip 2: True", "step"),
    ]


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_chunks_are_consecutive_views_along_dim(dim):
    x, y = torch.randn(5, 5, 2), torch.randn(5, 5)
    chunks = list(tbptt(x, y, window=2, dim=dim))
    time = 1 if dim == -2 else dim
    assert [chunk.shape[time] for chunk, _ in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat([chunk for chunk, _ in chunks], time), x)
    assert torch.equal(torch.cat([chunk for _, chunk in chunks], time), y)
    assert all(chunk.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for chunk, _ in chunks)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": 0},
        {"window": -3},
        {"window": True},
        {"window": 2.0},
        {"window": 2, "stride": 0},
        {"window": 2, "dim": 2},
        {"window": 2, "dim": -4},
        {"window": 2, "y": torch.ones(5, 4)},
        {"window": 2, "x": torch.ones(0, 4, 1), "y": torch.ones(0, 4)},
        {"window": 2, "y": None},
        {"window": 2, "x": [1.0, 2.0]},
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments):
    with pytest.raises(InputError):
        tbptt(**{"x": torch.ones(6, 4, 1), "y": torch.ones(6, 4), **arguments})


def test_a_stride_of_its_own_is_not_built_yet():
    x = torch.ones(6, 1)
    assert len(list(tbptt(x, x, window=2, stride=2))) == 3
    with pytest.raises(NotYetError, match="leave stride out"):
        tbptt(x, x, window=2, stride=1)


class Memory(NamedTuple):
    h: Tensor
    c: Tensor


def test_detach_state_keeps_structure_and_values():
    h = torch.ones(2, requires_grad=True) * 3
    state = {"lstm": (h, [h, None]), "named": Memory(h, h)}
    cut = detach_state(state)
    assert type(cut["named"]) is Memory
    assert [type(part) for part in cut["lstm"]] == [Tensor, list]
    assert cut["lstm"][1][1] is None
    for tensor in (cut["lstm"][0], cut["lstm"][1][0], *cut["named"]):
        assert torch.equal(tensor, h)
        assert tensor.grad_fn is None
    assert h.grad_fn is not None


def test_detach_state_names_what_it_cannot_cut():
    with pytest.raises(InputError, match="str"):
        detach_state((torch.ones(1), "h"))
