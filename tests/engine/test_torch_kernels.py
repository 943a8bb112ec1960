"""The torch backend: the standard cells on torch's own kernels equal the reference, whatever the layout."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch

import recollect
from recollect import cells, nn
from recollect.engine import torch_kernels
from tolerances import GRADIENT, VALUE, assert_equal

LENGTHS = {"dense": None, "lengths": (3, 0, 6, 1, 5), "no row reaches the end": (3, 1, 2, 2, 1), "none": (0,) * 5}


@pytest.mark.parametrize("both_ways", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu", "projected lstm"])
def test_it_equals_the_reference(name, lengths, both_ways):
    torch.manual_seed(0)
    projected, name = name.startswith("projected"), name.removeprefix("projected ")
    layer = nn.Recurrent(
        cells.by_name(name), 3, 5, 2, bidirectional=both_ways, proj_size=2 if projected else 0, dtype=torch.float64
    )
    x = torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)
    runs = 4 if both_ways else 2
    sizes = [2 if projected and place == 0 else 5 for place in range(len(layer.cell.states))]
    states = tuple(torch.randn(runs, 5, size, dtype=torch.float64, requires_grad=True) for size in sizes)
    results = []
    for backend in ("torch", "reference"):
        with recollect.set_backend(backend):
            y, final = layer(x, states, lengths=LENGTHS[lengths])
        outputs = [y, *(final if isinstance(final, tuple) else (final,))]
        total = sum((each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in outputs)
        wanted = [x, *states, *layer.parameters()]
        results.append((outputs, torch.autograd.grad(total, wanted, allow_unused=True)))
    for mine, true in zip(results[0][0], results[1][0], strict=True):
        assert_equal(mine, true, VALUE)
    for mine, true in zip(results[0][1], results[1][1], strict=True):
        if mine is not None and true is not None:
            assert_equal(mine, true, GRADIENT)
        else:
            assert lengths == "none"


def test_a_cell_that_is_only_called_lstm_is_not_taken_for_it():
    @recollect.cell(gates="i f g o", states="h c")
    def lstm(inp, rec, prev):
        c = torch.sigmoid(inp.f + rec.f) * prev.c + torch.sigmoid(inp.i + rec.i) * (inp.g + rec.g)
        return torch.sigmoid(inp.o + rec.o) * torch.tanh(c), c

    x = torch.zeros(2, 1, 3)
    assert nn.Recurrent(lstm, 3, 5, proj_size=2).backend_for(x).startswith("reference")
    assert nn.Recurrent(cells.lstm, 3, 5, proj_size=2).backend_for(x).startswith("torch")


def test_a_projected_output_is_said_to_go_to_torch():
    text = nn.LSTM(3, 5, proj_size=2).backend_for(torch.zeros(2, 1, 3))
    assert text.startswith("torch: ")
    assert "proj_size" in text
    text = nn.Recurrent(cells.cifg_lstm, 3, 5, proj_size=2).backend_for(torch.zeros(2, 1, 3))
    assert text.startswith("reference: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_standard_cell_on_a_gpu_goes_to_torch():
    layer = nn.LSTM(3, 5, bidirectional=True).cuda()
    x = torch.randn(4, 2, 3)
    assert layer.backend_for(x.cuda()).startswith("torch")
    y, _ = layer(x.cuda())
    y.sum().backward()  # also in eval mode: see test_backward_in_eval_mode
    assert_equal(y.cpu(), layer.cpu()(x)[0])


def test_two_threads_leave_the_filters_of_warnings_as_they_were():
    """They are the process's: of two blocks that overlap the last one would put back what the other had set."""
    before, began, go_on = list(warnings.filters), threading.Event(), threading.Event()

    def other():
        with torch_kernels._quiet():
            began.set()
            go_on.wait(30)

    thread = threading.Thread(target=other)
    with torch_kernels._quiet():
        thread.start()
        began.wait(0.2)  # where it may begin at all
    go_on.set()
    thread.join()
    assert warnings.filters == before
