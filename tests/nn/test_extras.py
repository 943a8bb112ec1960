"""What our layers can do that torch.nn's cannot: resets, all states, recurrent dropout, zoneout, learned states.

The truth is a loop written here, one `Cell` call a step; every backend is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import recollect
from recollect import cells, nn
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal


@dataclass(frozen=True)
class Case:
    """Sizes of a layer, and what is asked of it."""

    steps: int = 6
    batch: int = 5
    inputs: int = 3
    hidden: int = 3
    both_ways: bool = False
    lengths: tuple[int, ...] | None = None
    resets: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, ...] = 0.0
    training: bool = True


CASES = {
    "resets": Case(resets=True),
    "resets, lengths, both ways": Case(resets=True, lengths=(3, 0, 6, 1, 5), both_ways=True),
    "resets, long": Case(steps=300, resets=True, lengths=(300, 12, 0, 299, 157)),
    "recurrent dropout": Case(recurrent_dropout=0.4),
    "zoneout": Case(zoneout=0.3),
    "zoneout in eval mode": Case(zoneout=0.3, training=False),
    "all of it, wide": Case(
        7, 9, 33, 17, True, (2, 7, 0, 7, 1, 5, 5, 6, 7), resets=True, recurrent_dropout=0.5, zoneout=0.2
    ),
}


def layer_and_input(cell, case, dtype):
    torch.manual_seed(1)
    layer = nn.Recurrent(
        cell, case.inputs, case.hidden, bidirectional=case.both_ways, dtype=dtype,
        recurrent_dropout=case.recurrent_dropout, zoneout=case.zoneout,
    ).train(case.training)  # fmt: skip
    x = torch.randn(case.steps, case.batch, case.inputs, dtype=dtype)
    states = tuple(torch.rand(1 + case.both_ways, case.batch, case.hidden, dtype=dtype) + 0.5 for _ in cell.states)
    resets = torch.rand(case.steps, case.batch) < 0.3 if case.resets else None
    return layer, x, states, resets


def by_hand(layer, x, states, lengths, resets, noise):
    """One direction after the other, one row after the other, one step after the other."""
    cell, given = layer.cell, iter(noise)
    runs = 1 + layer.bidirectional
    feed_masks = [next(given) for _ in range(runs)] if layer.training and layer.recurrent_dropout else None
    keep = [[next(given) for _ in cell.states] for _ in range(runs)] if any(layer.zoneout) else None
    everything = [torch.zeros(*x.shape[:2], runs * layer.hidden_size, dtype=x.dtype) for _ in cell.states]
    everything = [list(each.unbind(0)) for each in everything]
    finals = []
    for run, suffix in enumerate(["l0", "l0_reverse"][:runs]):
        w = {name.removesuffix(f"_{suffix}"): p for name, p in layer.named_parameters() if name.endswith(f"_{suffix}")}
        vec = cell.Vectors(*(w[f"vector_{name}"] for name in cell.vectors))
        last = []
        for row in range(x.shape[1]):
            length = x.shape[0] if lengths is None else lengths[row]
            start = [state[run, row : row + 1] for state in states]
            now = start
            for t in reversed(range(length)) if run else range(length):
                if resets is not None and resets[t, row]:
                    now = start
                fed = now[0] * feed_masks[run][row] if feed_masks else now[0]
                inp = torch.nn.functional.linear(x[t, row : row + 1], w["weight_ih"], w["bias_ih"])
                rec = torch.nn.functional.linear(fed, w["weight_hh"], w["bias_hh"])
                gates = len(cell.gates)
                new = cell(
                    cell.Shares(*inp.chunk(gates, -1)), cell.Shares(*rec.chunk(gates, -1)), cell.States(*now), vec
                )
                if keep:
                    shares = [each[t, row] if each.dim() > 1 else each for each in keep[run]]
                    new = [k * old + (1 - k) * s for k, old, s in zip(shares, now, new, strict=True)]
                now = list(new)
                units = slice(run * layer.hidden_size, (run + 1) * layer.hidden_size)
                for place, value in enumerate(now):
                    at = torch.zeros_like(everything[place][t])
                    at[row, units] = 1
                    everything[place][t] = everything[place][t] + at * torch.nn.functional.pad(
                        value, (run * layer.hidden_size, (runs - 1 - run) * layer.hidden_size)
                    )
            last.append(now)
        finals.append([torch.cat(each) for each in zip(*last, strict=True)])
    return [torch.stack(each) for each in everything], [torch.stack(each) for each in zip(*finals, strict=True)]


def gradients(layer, x, states, outputs):
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in outputs]
    total = sum((each * weight).sum() for each, weight in zip(outputs, weights, strict=True))
    wanted = [x, *states, *layer.parameters()]
    found = torch.autograd.grad(total, wanted, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("backend", ["llvm", "reference"])
@pytest.mark.parametrize("name", ["lstm", "gru", "peephole_lstm", "rnn_tanh"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_loop(case, name, backend):
    cell, dtype = cells.by_name(name), torch.float32 if case.endswith("wide") else torch.float64
    case = CASES[case]
    layer, x, states, resets = layer_and_input(cell, case, dtype)
    truth = layer_and_input(cell, case, torch.float64)[0]
    truth.load_state_dict(layer.state_dict())
    true_x = x.double().requires_grad_()
    true_states = tuple(each.double().requires_grad_() for each in states)
    x.requires_grad_()
    states = tuple(each.requires_grad_() for each in states)

    torch.manual_seed(2)
    noise = layer._noise(x, case.batch)
    everything, finals = by_hand(truth, true_x, true_states, case.lengths, resets, [n.double() for n in noise])
    with recollect.set_backend(backend):
        torch.manual_seed(2)
        y, final, all_states = layer(x, states, lengths=case.lengths, resets=resets, return_states=True)
        torch.manual_seed(2)
        plain_y, plain_final = layer(x, states, lengths=case.lengths, resets=resets)
        found = gradients(layer, x, states, [*as_tuple(all_states), *as_tuple(final)])
        plain_found = gradients(layer, x, states, [plain_y, *as_tuple(plain_final)])
    for mine, true in zip(as_tuple(all_states), everything, strict=True):
        assert_equal(mine, true, VALUE)
    for mine, true in zip(as_tuple(final), finals, strict=True):
        assert_equal(mine, true, VALUE)
    assert_bits(plain_y, y)
    for mine, true in zip(found, gradients(truth, true_x, true_states, [*everything, *finals]), strict=True):
        assert_equal(mine, true, GRADIENT)
    true_plain = gradients(truth, true_x, true_states, [everything[0], *finals])
    for mine, true in zip(plain_found, true_plain, strict=True):
        assert_equal(mine, true, GRADIENT)


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_has_all_of_it(name):
    """Against the reference, which the test above compares with the loop."""
    cell = cells.by_name(name)
    zoneout = tuple(0.1 * (place + 1) for place in range(len(cell.states)))
    case = replace(CASES["all of it, wide"], zoneout=zoneout)
    results = []
    for backend in ("llvm", "reference"):
        layer, x, states, resets = layer_and_input(cell, case, torch.float64)
        x.requires_grad_()
        states = tuple(each.requires_grad_() for each in states)
        with recollect.set_backend(backend):
            torch.manual_seed(3)
            _, final, all_states = layer(x, states, lengths=case.lengths, resets=resets, return_states=True)
            outputs = [*as_tuple(all_states), *as_tuple(final)]
            results.append((outputs, gradients(layer, x, states, outputs)))
    for mine, true in zip(results[0][0], results[1][0], strict=True):
        assert_equal(mine, true, VALUE)
    for mine, true in zip(results[0][1], results[1][1], strict=True):
        assert_equal(mine, true, GRADIENT)


def test_all_states_of_an_lstm_are_those_of_torchs_cell():
    """pytorch/pytorch#31423: c_t as well as h_t at every step, with gradient."""
    torch.manual_seed(0)
    theirs, ours = torch.nn.LSTMCell(3, 5, dtype=torch.float64), nn.LSTM(3, 5, dtype=torch.float64)
    ours.load_state_dict({f"{name}_l0": value for name, value in theirs.state_dict().items()})
    x = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    h = c = torch.zeros(2, 5, dtype=torch.float64)
    hs, cs = [], []
    for step in x:
        h, c = theirs(step, (h, c))
        hs.append(h)
        cs.append(c)
    y, state, (all_h, all_c) = ours(x, return_states=True)
    assert all_h is y
    assert_equal(all_h, torch.stack(hs))
    assert_equal(all_c, torch.stack(cs))
    assert_equal(state[1][0], all_c[-1])
    weight = torch.randn(7, 2, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad((all_c * weight).sum(), x)
    (expected,) = torch.autograd.grad((torch.stack(cs) * weight).sum(), x)
    assert_equal(found, expected, GRADIENT)


def test_a_reset_row_is_two_sequences():
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 5, 2), torch.randn(9, 2, 3)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[4, 1] = True
    y, final = layer(x, resets=resets)
    first, _ = layer(x[:4, 1:])
    second, end = layer(x[4:, 1:])
    assert_equal(y[:, 1:], torch.cat([first, second]))
    assert_equal(final[:, 1:], end)
    assert_equal(y[:, :1], layer(x[:, :1])[0])


def test_no_gradient_passes_a_reset():
    layer, x = nn.LSTM(3, 5), torch.randn(9, 2, 3, requires_grad=True)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[4] = True
    layer(x, resets=resets)[0][-1].sum().backward()
    assert (x.grad[:4] == 0).all()
    assert (x.grad[4:] != 0).all()


@pytest.mark.parametrize("layout", ["batch_first", "unbatched", "packed"])
def test_every_layout_takes_resets_and_returns_states(layout):
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 5, 2, bidirectional=True), torch.randn(6, 4, 3)
    resets, lengths = torch.rand(6, 4) < 0.3, torch.tensor([2, 6, 1, 5])
    if layout == "packed":

        def pack(values):
            return torch.nn.utils.rnn.pack_padded_sequence(values, lengths, enforce_sorted=False)

        expected, end, all_states = layer(x, lengths=lengths, resets=resets, return_states=True)
        y, final, states = layer(pack(x), resets=pack(resets), return_states=True)
        unpacked = [torch.nn.utils.rnn.pad_packed_sequence(each, total_length=6)[0] for each in (y, *states)]
        assert_equal(layer(pack(x), resets=pack(resets).data)[0].data, y.data)
    elif layout == "unbatched":
        expected, end, all_states = layer(x[:, :1], resets=resets[:, :1], return_states=True)
        expected, end = expected[:, 0], tuple(each[:, 0] for each in end)
        all_states = tuple(each[:, 0] for each in all_states)
        y, final, states = layer(x[:, 0], resets=resets[:, 0], return_states=True)
        unpacked = [y, *states]
    else:
        expected, end, all_states = layer(x, lengths=lengths, resets=resets, return_states=True)
        layer.batch_first = True
        y, final, states = layer(x.transpose(0, 1), lengths=lengths, resets=resets.transpose(0, 1), return_states=True)
        unpacked = [each.transpose(0, 1) for each in (y, *states)]
    for mine, true in zip([*unpacked, *final], [expected, *all_states, *end], strict=True):
        assert_equal(mine, true)


def test_noise_is_a_matter_of_the_seed_and_not_of_the_threads():
    """pytorch/pytorch#104697."""
    layer = nn.LSTM(16, 64, 2, dropout=0.3, recurrent_dropout=0.3, zoneout=0.2)
    x = torch.randn(40, 32, 16)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        layer.zero_grad()
        torch.manual_seed(5)
        y, _ = layer(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    for other in results[1:]:
        for mine, first in zip(other, results[0], strict=True):
            assert_bits(mine, first)
    torch.manual_seed(6)
    assert not torch.equal(layer(x)[0], results[0][0])


def test_one_mask_of_recurrent_dropout_serves_a_whole_sequence():
    """With W_hh the identity and no input, a ReLU unit whose feed is dropped is 0 from the first step on."""
    layer = nn.RNN(1, 200, nonlinearity="relu", bias=False, recurrent_dropout=0.5)
    nn.init.identity_(layer)
    y, _ = layer(torch.zeros(5, 3, 1), torch.ones(1, 3, 200))
    dropped = y[0] == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert_equal(y, torch.where(dropped, 0.0, 2.0 ** torch.arange(1, 6).view(5, 1, 1)))
    assert not torch.equal(dropped[0], dropped[1])


def test_zoneout_keeps_units_as_often_as_it_says():
    layer = nn.LSTM(2, 300, zoneout=(0.1, 0.6))
    _, _, (h, c) = layer(torch.randn(50, 4, 2), return_states=True)
    for states, share in ((h, 0.1), (c, 0.6)):
        assert abs((states[1:] == states[:-1]).float().mean() - share) < 0.01
    layer.eval()
    _, _, (h, c) = layer(torch.randn(50, 4, 2), return_states=True)
    assert (h[1:] != h[:-1]).any(0).all()


@pytest.mark.parametrize("extras", [{"recurrent_dropout": 0.0}, {"zoneout": 0.0}, {"recurrent_dropout": 0.7}])
def test_without_noise_nothing_changes(extras):
    torch.manual_seed(0)
    plain = nn.GRU(3, 5)
    layer = nn.GRU(3, 5, **extras).eval()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(4, 2, 3)
    assert_bits(layer(x)[0], plain(x)[0])


def test_noise_has_a_second_derivative():
    layer = nn.LSTM(2, 3, recurrent_dropout=0.4, zoneout=0.3, dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    resets = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]).bool()

    def call(value):
        torch.manual_seed(0)
        return layer(value, resets=resets, return_states=True)[2]

    assert torch.autograd.gradgradcheck(call, x)


class TestLearnedInitialState:
    def test_it_starts_as_zeros_and_learns(self):
        torch.manual_seed(0)
        plain = nn.LSTM(3, 5, 2, bidirectional=True)
        torch.manual_seed(0)
        layer = nn.LSTM(3, 5, 2, bidirectional=True, learned_initial_state=True)
        x = torch.randn(4, 2, 3)
        assert_bits(layer(x)[0], plain(x)[0])
        names = set(layer.state_dict()) - set(plain.state_dict())
        assert names == {f"initial_{s}_l{k}{d}" for s in "hc" for k in (0, 1) for d in ("", "_reverse")}
        layer(x)[0].square().sum().backward()
        for name in names:
            assert layer.get_parameter(name).grad.abs().sum() > 0

    def test_it_is_the_state_of_every_row_and_where_a_reset_goes_back_to(self):
        torch.manual_seed(0)
        layer, x = nn.GRU(3, 5, learned_initial_state=True), torch.randn(4, 2, 3)
        torch.nn.init.normal_(layer.initial_h_l0)
        start = layer.initial_h_l0.detach().expand(1, 2, 5)
        resets = torch.rand(4, 2) < 0.5
        for flags in (None, resets):
            y, _ = layer(x, resets=flags)
            assert_bits(y, layer(x, start, resets=flags)[0])

    def test_with_a_projection_the_first_is_smaller(self):
        layer = nn.LSTM(3, 5, proj_size=2, learned_initial_state=True)
        assert layer.initial_h_l0.shape == (2,)
        assert layer.initial_c_l0.shape == (5,)
        layer(torch.randn(4, 2, 3))[0].sum().backward()
        assert layer.initial_c_l0.grad is not None
