"""Training in segments gives the gradients of training on the whole sequence, in the memory of one segment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import recollect
from recollect import cells, nn
from recollect.engine import segments
from recollect.errors import InputError, NotYetError
from tolerances import GRADIENT, assert_equal

T, B, INPUTS, H = 11, 5, 3, 4


def results(layer, x, state, checkpoint, **options):
    """Outputs, final states and every gradient."""
    layer.checkpoint = checkpoint
    torch.manual_seed(1)
    y, final, *more = layer(x, state, **options)
    everything = [y, *(final if isinstance(final, tuple) else (final,))]
    everything += [each for of in more for each in (of if isinstance(of, tuple) else (of,))]
    loss = sum((each * torch.linspace(-1, 1, each.numel(), dtype=x.dtype).view_as(each)).sum() for each in everything)
    inputs = [x, *layer.parameters(), *(state if isinstance(state, tuple) else () if state is None else (state,))]
    return everything, torch.autograd.grad(loss, inputs)


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("steps", [1, 3, 4, 10])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "peephole_lstm", "slstm"])
@pytest.mark.parametrize("lengths", [None, [3, 11, 0, 7, 1], [2, 2, 9, 1, 1]], ids=str)
def test_segments_change_no_output_and_no_gradient(name, lengths, steps):
    torch.manual_seed(0)
    cell = getattr(cells, name)
    layer = nn.Recurrent(cell, INPUTS, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    state = tuple(leaf(4, B, H) for _ in cell.states)
    state = state if len(state) > 1 else state[0]
    for given in (None, state):
        x = leaf(T, B, INPUTS)
        expected = results(layer, x, given, None, lengths=lengths)
        for found, wanted in zip(results(layer, x, given, steps, lengths=lengths), expected, strict=True):
            for one, other in zip(found, wanted, strict=True):
                assert_equal(one, other, GRADIENT)


@pytest.mark.parametrize("batch_first", [False, True])
def test_with_noise_and_all_states(batch_first):
    torch.manual_seed(0)
    layer = nn.LSTM(INPUTS, H, batch_first=batch_first, recurrent_dropout=0.3, zoneout=0.2, dtype=torch.float64)
    x = leaf(B, T, INPUTS) if batch_first else leaf(T, B, INPUTS)
    expected = results(layer, x, None, None, return_states=True)
    for found, wanted in zip(results(layer, x, None, 4, return_states=True), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other, GRADIENT)


def test_only_a_part_of_the_results_is_used():
    layer, x = nn.LSTM(INPUTS, H, checkpoint=3), torch.randn(T, B, INPUTS)
    layer.weight_hh_l0.requires_grad_(False)
    layer(x)[1][1].sum().backward()
    found = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    layer.checkpoint = None
    layer(x)[1][1].sum().backward()
    assert found[1] is None
    for one, parameter in zip(found, layer.parameters(), strict=True):
        assert (one is None) == (parameter.grad is None)
        if one is not None:
            assert_equal(one, parameter.grad, GRADIENT)


def test_auto_cuts_what_is_long_only(monkeypatch):
    cut = []
    monkeypatch.setattr(segments, "_cut", lambda *a, old=segments._cut, **k: cut.append(a[1]) or old(*a, **k))
    layer, x = nn.LSTM(INPUTS, H, checkpoint="auto"), torch.randn(T, B, INPUTS)
    layer(x)[0].sum().backward()
    assert cut == []
    monkeypatch.setattr(segments, "_SEGMENT", 1000)
    layer(x)[0].sum().backward()
    assert len(cut) == 1
    assert 1 <= cut[0] < T


@pytest.mark.parametrize("batch_first", [False, True])
def test_memory_is_that_of_a_segment(batch_first):
    """Resident memory; what is kept for the backward pass would be 230 MiB here."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    layer, x = nn.LSTM(4, 64, batch_first=batch_first, checkpoint=100), torch.randn(8000, 16, 4)
    x = x.transpose(0, 1).contiguous() if batch_first else x
    layer(x[:, :200] if batch_first else x[:200])[0].sum().backward()
    recollect.release_buffers()
    y = layer(x)[0]
    before = resident()
    y.backward(y.detach())
    assert resident() - before < 60 * 2**20, "grew by more than a segment, the gradients and a margin"


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "always", [3]])
def test_what_is_no_length_is_refused(wrong):
    with pytest.raises(InputError, match="how long segments are"):
        nn.LSTM(INPUTS, H, checkpoint=wrong)


def test_what_is_not_there_says_so():
    layer, x = nn.LSTM(INPUTS, H, checkpoint=3), torch.randn(T, B, INPUTS, requires_grad=True)
    with pytest.raises(NotYetError, match="resets"):
        layer(x, resets=torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(NotYetError, match="first derivatives"):
        torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)


def test_it_is_shown_and_part_of_a_file(tmp_path):
    layer = nn.GRU(INPUTS, H, checkpoint="auto")
    assert "checkpoint=auto" in repr(layer)
    recollect.save(layer, tmp_path / "m.safetensors")
    assert recollect.load(tmp_path / "m.safetensors").checkpoint == "auto"
