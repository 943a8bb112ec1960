"""What is derived from a recorded run, against float64 autograd through the same run."""

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from recollect import cells
from recollect.diagnosis.runs import recording
from recollect.graph.gates import activations

CELLS = [cells.by_name(name) for name in cells.__all__]


def runs(model, x, loss=None, lengths=None):
    calls, _ = recording.record(model, x, None, loss, lengths)
    return {each.name: each for call in calls for each in call.unrolled.values()}


def squares(output, _):
    """A loss of every output of every row."""
    return (output[0] ** 2).sum()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"zoneout": 0.3}], ids=str)
@pytest.mark.parametrize("lengths", [None, [4, 9, 0, 1]])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_parts_of_the_weights_gradient_add_up_to_it(cell, lengths, options):
    torch.manual_seed(0)
    layer = recollect.nn.Recurrent(cell, 3, 5, dtype=torch.float64, **options).eval()
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    with recollect.set_backend("reference"):
        squares(layer(x, lengths=lengths), None).backward()
    for name, each in runs(layer, x, squares, lengths).items():
        rows = np.concatenate(list(each.by_lag()))
        assert sorted(rows) == list(np.flatnonzero(each.valid))  # every valid row has one lag
        total = each.recurrent_gradients[rows].T @ each.before[0][rows]
        wanted = getattr(layer, f"weight_hh_{name}").grad
        torch.testing.assert_close(total, wanted, rtol=1e-10, atol=1e-12 * wanted.abs().max().item())
        torch.testing.assert_close(each.recurrent_gradients[rows].sum(0), getattr(layer, f"bias_hh_{name}").grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_weight_grad_norm_by_lag_is_the_gradient_of_one_steps_own_weights(kind):
    torch.manual_seed(1)
    layer, x = kind(3, 5), torch.randn(8, 4, 3)
    found = recollect.diagnose(layer, x, loss=squares).weight_grad_norm_by_lag
    step = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[kind](3, 5).double()
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    own = [{k: v.detach().clone().requires_grad_() for k, v in step.named_parameters()} for _ in x]
    state, total = None, 0.0
    for weights, now in zip(own, x.double(), strict=True):
        state = torch.func.functional_call(step, weights, (now, state))
        total = total + ((state[0] if kind is nn.LSTM else state) ** 2).sum()
    total.backward()
    wanted = [weights["weight_hh"].grad.norm().item() for weights in reversed(own)]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-14)
    assert found.dtype == np.float64
    assert found[-1] == 0  # the first step began with zeros


def test_the_parts_of_a_weights_gradient_may_lie_far_below_its_squares_range():
    @recollect.cell(gates="a", states="h")
    def linear(inp, rec, prev):
        return inp.a + rec.a

    layer = recollect.nn.Recurrent(linear, 1, 1, bias=False)
    layer.weight_hh_l0.data.fill_(0.5)
    layer.weight_ih_l0.data.fill_(1.0)
    found = recollect.diagnose(layer, torch.ones(900, 1, 1)).weight_grad_norm_by_lag
    lag = np.arange(899)
    np.testing.assert_allclose(found[:-1], 0.5**lag * (2 - 0.5 ** (898.0 - lag)), rtol=1e-9)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_derivatives_within_a_step_are_autograds(cell):
    torch.manual_seed(2)
    layer = recollect.nn.Recurrent(cell, 3, 5, dtype=torch.float64)
    (each,) = runs(layer, torch.randn(6, 4, 3)).values()
    leaves = {name: value.clone().requires_grad_() for name, value in each.leaves.items()}

    def of(kind, names):
        return [leaves.get(f"{kind}.{name}") for name in names]

    new = cell(cell.Shares(*of("inp", cell.gates)), cell.Shares(*of("rec", cell.gates)),
               cell.States(*of("prev", cell.states)), cell.Vectors(*of("vec", cell.vectors)))  # fmt: skip
    for state, value in zip(cell.states, new, strict=True):
        wrt = [name for name in leaves if not name.startswith("vec.")]
        wanted = torch.autograd.grad(value.sum(), [leaves[n] for n in wrt], retain_graph=True, allow_unused=True)
        for name, grad in zip(wrt, wanted, strict=True):
            found = torch.as_tensor(each.partials.get(f"{state}/{name}", 0.0)) + torch.zeros(24, 5)
            torch.testing.assert_close(found, torch.zeros(24, 5) if grad is None else grad, rtol=1e-10, atol=1e-13)


def test_gates_are_found_by_name_or_by_what_they_do():
    kinds = {cell.name: {k: v.kind for k, v in activations(cell.graph, cell.gates).items()} for cell in CELLS}
    assert kinds["lstm"] == {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"}
    assert kinds["gru"] == {"r": "sigmoid", "z": "sigmoid", "n": "tanh"}
    assert kinds["mgu"] == {"f": "sigmoid", "n": "tanh"}
    assert kinds["rnn_tanh"] == {"a": "tanh"}
    assert kinds["rnn_relu"] == {"a": "relu"}
    assert kinds["slstm"] == {"i": "other", "f": "other", "g": "tanh", "o": "sigmoid"}

    @recollect.cell(gates="a b u", states="h")
    def unnamed(inp, rec, prev):
        keep = torch.sigmoid(inp.a + rec.a)
        b = inp.b + rec.b  # of the gate's name, but no activation yet
        return keep * prev.h + (1 - keep) * torch.tanh(b) + inp.u

    found = activations(unnamed.graph, unnamed.gates)
    assert {name: each.kind for name, each in found.items()} == {"a": "sigmoid", "b": "tanh"}


@pytest.mark.parametrize("lengths", [None, [3, 7, 5]])
def test_gates_and_states_are_those_of_the_run(lengths):
    torch.manual_seed(3)
    layer, x = nn.LSTM(2, 4, bias=False), 3 * torch.randn(7, 3, 2)
    found = recollect.diagnose(layer, x, lengths=lengths)
    ours = recollect.convert(layer)
    (_, _, (h, c)) = ours(x, lengths=None if lengths is None else torch.tensor(lengths), return_states=True)
    before = torch.cat([torch.zeros(1, 3, 4), h[:-1]])
    preact = (x @ layer.weight_ih_l0.T + before @ layer.weight_hh_l0.T).detach()
    gates = dict(zip("ifgo", preact.chunk(4, -1), strict=True))
    valid = torch.arange(7)[:, None] < torch.tensor(lengths or [7, 7, 7])
    for name in "ifo":
        seen, values = found.gates[f"l0.{name}"], torch.sigmoid(gates[name]) * valid.unsqueeze(-1)
        np.testing.assert_allclose(seen.openness, values.mean(-1).sum(1) / valid.sum(1), rtol=1e-5)
        longest = 0 if lengths is None else 1
        np.testing.assert_allclose(seen.example, values[:, longest], rtol=1e-4)
        assert seen.low == pytest.approx((torch.sigmoid(gates[name])[valid] < 0.01).double().mean().item())
        assert seen.unit_high.shape == (4,)
    for name, states in (("h", h), ("c", c)):
        norms = ((states.detach().norm(dim=-1) ** 2 * valid).sum(1) / valid.sum(1)).sqrt()
        np.testing.assert_allclose(found.state_norms[f"l0.{name}"], norms, rtol=1e-5)
    np.testing.assert_array_equal(found.example[""], x[:, longest].double())


def test_the_spectral_norm_is_the_largest_singular_value():
    layer = nn.LSTM(2, 4)
    found = recollect.diagnose(layer, torch.randn(3, 1, 2))
    assert found.spectral_norm.keys() == found.spectral_radius.keys()
    for gate, block in zip("ifgo", layer.weight_hh_l0.detach().double().chunk(4), strict=True):
        norm = found.spectral_norm[f"weight_hh_l0.{gate}"]
        assert norm == pytest.approx(torch.linalg.svdvals(block)[0].item())
        assert norm >= found.spectral_radius[f"weight_hh_l0.{gate}"] * (1 - 1e-12)
