"""Truncated backpropagation: literally which steps receive gradient, and in what order things happen."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from recollect import nn as ours
from recollect.errors import InputError
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
        {"window": 2, "stride": 3},
        {"window": 2, "stride": 1.0},
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


# T = 7. An update's outputs are those of its new steps; (t, lag): the output of step t + lag has a gradient for x[t].
PAIRS = {
    # window, stride: of each update, in the order of outputs
    (3, 1): [
        [(0, 0)],
        [(0, 1), (1, 0)],
        [(0, 2), (1, 1), (2, 0)],
        [(1, 2), (2, 1), (3, 0)],
        [(2, 2), (3, 1), (4, 0)],
        [(3, 2), (4, 1), (5, 0)],
        [(4, 2), (5, 1), (6, 0)],
    ],
    (3, 2): [
        [(0, 0), (0, 1), (1, 0)],
        [(1, 1), (2, 0), (1, 2), (2, 1), (3, 0)],
        [(3, 1), (4, 0), (3, 2), (4, 1), (5, 0)],
        [(4, 2), (5, 1), (6, 0)],
    ],
    (3, 3): [
        [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)],
        [(3, 0), (3, 1), (4, 0), (3, 2), (4, 1), (5, 0)],
        [(6, 0)],
    ],
}


@pytest.mark.parametrize(("window", "stride"), PAIRS)
def test_which_steps_receive_gradient_from_which_outputs(window, stride):
    x = torch.ones(7, requires_grad=True)
    a = torch.tensor(0.5)
    model = lambda x_chunk, h: linear_cell(x_chunk, h, a)  # noqa: E731
    state, first_new, pairs, losses = torch.zeros(()), 0, [], []
    for chunk in tbptt(x, torch.zeros_like(x), window, stride):
        outputs = chunk.newest(model(chunk[0], state)[0])
        assert len(outputs) == len(chunk[1])
        pairs.append([])
        for t, output in enumerate(outputs, start=first_new):
            pairs[-1] += [(step, t - step) for step in steps_with_gradient(x, output)]
        first_new += len(outputs)
        losses.append(outputs.detach())
        state = chunk.carry(model, state)
    assert pairs == PAIRS[window, stride]
    whole, last = linear_cell(x.detach(), torch.zeros(()), a)
    assert torch.equal(torch.cat(losses), whole)
    assert torch.equal(state, last)


SHAPES = [(T, window, stride) for T in (1, 2, 7, 12) for window in (1, 3, 4, 12) for stride in range(1, window + 1)]


@pytest.mark.parametrize(("T", "window", "stride"), SHAPES)
def test_every_target_is_in_one_chunk_and_the_state_goes_to_the_end(T, window, stride):
    x = torch.arange(T)
    chunks = list(tbptt(x, x, window, stride))
    assert torch.cat([y_chunk for _, y_chunk in chunks]).tolist() == list(range(T))
    position = 0
    for chunk in chunks:
        x_chunk, y_chunk = chunk
        assert x_chunk[0] == position
        assert x_chunk[-1] == y_chunk[-1]
        assert len(x_chunk) <= window
        # Each target's gradient goes back so far, or to the start of the sequence.
        assert y_chunk[0] - x_chunk[0] >= min(window - stride, y_chunk[0])
        position += chunk.advance
    assert position == T


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("module", [nn.LSTM, ours.LSTM])
def test_gradients_of_chunks_that_reach_the_start_add_up_to_full_bptt(module, stride):
    torch.manual_seed(0)
    rnn = module(3, 4, dtype=torch.float64)
    x, y = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(7, 2, 4, dtype=torch.float64)
    (rnn(x)[0] - y).square().sum().backward()
    full = [parameter.grad.clone() for parameter in rnn.parameters()]
    rnn.zero_grad()
    state = None
    for chunk in tbptt(x, y, 7, stride):
        (chunk.newest(rnn(chunk[0], state)[0]) - chunk[1]).square().sum().backward()
        state = chunk.carry(rnn, state)
    for one, other in zip(full, rnn.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-12, atol=1e-12)


def williams_and_peng(rnn, optimizer, x, y, window, stride):
    """BPTT(window; stride) by hand, one step after the other; returns the gradients of each update."""
    before = {0: None}  # the state before each step, as it was when the step was last run
    gradients = []
    for first_new in range(0, len(x), stride):
        end = min(first_new + stride, len(x))
        start = first_new if stride == window else max(0, end - window)
        state, loss = before[start], 0.0
        for t in range(start, end):
            before[t] = None if state is None else tuple(part.detach() for part in state)
            output, state = rnn(x[t : t + 1], state)
            if t >= first_new:
                loss = loss + (output[0] - y[t]).square().sum()
        before[end] = tuple(part.detach() for part in state)
        optimizer.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in rnn.parameters()])
        optimizer.step()
    return gradients


@pytest.mark.parametrize(("window", "stride"), [(5, 1), (5, 2), (5, 4), (6, 3), (4, 4)])
@pytest.mark.parametrize("dim", [0, 1])
def test_updates_equal_those_of_williams_and_peng(window, stride, dim):
    torch.manual_seed(0)
    x, y = torch.randn(17, 2, 3, dtype=torch.float64), torch.randn(17, 2, 4, dtype=torch.float64)
    by_hand = nn.LSTM(3, 4, dtype=torch.float64)
    rnn = nn.LSTM(3, 4, batch_first=bool(dim), dtype=torch.float64)
    rnn.load_state_dict(by_hand.state_dict())
    expected = williams_and_peng(by_hand, torch.optim.SGD(by_hand.parameters(), lr=0.05), x, y, window, stride)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.05)
    if dim:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    found, state = [], None
    for chunk in tbptt(x, y, window, stride, dim):
        x_chunk, y_chunk = chunk
        optimizer.zero_grad()
        output, _ = rnn(x_chunk, state)
        (chunk.newest(output) - y_chunk).square().sum().backward()
        state = chunk.carry(rnn, state)
        found.append([parameter.grad.clone() for parameter in rnn.parameters()])
        optimizer.step()
    assert len(found) == len(expected) == -(-17 // stride)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_a_stride_equal_to_the_window_changes_nothing():
    x = torch.randn(7, 2)
    for with_stride, without in zip(tbptt(x, x, 3, 3), tbptt(x, x, 3), strict=True):
        assert len(with_stride) == 2
        assert all(torch.equal(one, other) for one, other in zip(with_stride, without, strict=True))
        assert with_stride.advance == len(with_stride[0])


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
