"""Curves against closed forms and against float64 autograd through loops written out by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import recollect
from recollect.diagnosis import flow


@recollect.cell(gates="a", states="h")
def linear(inp, rec, prev):
    return inp.a + rec.a


def lstm_step(pre_x, pre_h, states):
    i, f, g, o = (pre_x + pre_h).chunk(4)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(pre_x, pre_h, states):
    (xr, xz, xn), (hr, hz, hn) = pre_x.chunk(3), pre_h.chunk(3)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return ((1 - z) * n + z * states[0],)


STEPS = {nn.LSTM: (lstm_step, "hc"), nn.GRU: (gru_step, "h")}


def unroll(layer, x):
    """One row [T, I] through all levels; returns outputs, final states h by direction, and all states kept."""
    step, names = STEPS[type(layer)]
    kept, finals, inputs = {}, [], list(x)
    for level in range(layer.num_layers):
        outputs = []
        for suffix in ["", "_reverse"][: 1 + layer.bidirectional]:
            label = f"l{level}{suffix}"
            w_ih, w_hh, b_ih, b_hh = (
                getattr(layer, f"{kind}_{label}").detach().double()
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            # Without a graph behind it the first state would have no gradient to keep.
            states = [torch.zeros(layer.hidden_size, dtype=torch.float64, requires_grad=True) for _ in names]
            order = range(len(inputs) - 1, -1, -1) if suffix else range(len(inputs))
            by_time = [None] * len(inputs)
            for t in order:
                new = step(w_ih @ inputs[t] + b_ih, w_hh @ states[0] + b_hh, states)
                states = [each.clone() for each in new]
                for each in states:
                    each.retain_grad()
                by_time[t] = states[0]
                for name, each in zip(names, states, strict=True):
                    kept.setdefault(f"{label}.{name}", []).append(each)
            finals.append(states[0])
            outputs.append(by_time)
        inputs = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return torch.stack(inputs), finals, kept


def curves_by_hand(rows_kept):
    """Root mean square over rows, lag 0 being the step processed last."""
    curves = {}
    for name in rows_kept[0]:
        longest = max(len(kept[name]) for kept in rows_kept)
        curve = np.zeros(longest)
        for lag in range(longest):
            states = [kept[name][-1 - lag] for kept in rows_kept if len(kept[name]) > lag]
            norms = [0.0 if s.grad is None else s.grad.norm().item() for s in states]
            curve[lag] = np.sqrt(np.mean(np.square(norms)))
        curves[name] = curve
    return curves


def assert_same(found, wanted, prefix=""):
    assert set(found) == {prefix + name for name in wanted}
    for name, curve in wanted.items():
        np.testing.assert_allclose(found[prefix + name], curve, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("rho", [0.9, 1.0, 1.1])
def test_linear_cell_has_the_closed_form(rho):
    torch.manual_seed(0)
    # In float32 a matrix is orthogonal to 1e-7 only, and the error grows over the steps.
    layer = recollect.nn.Recurrent(linear, 3, 8, dtype=torch.float64)
    layer.weight_hh_l0.data = rho * torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q

    diagnosis = recollect.diagnose(layer, torch.randn(60, 5, 3))

    g = diagnosis.grad_norm_by_lag
    assert g.dtype == np.float64
    assert g[0] == pytest.approx(1.0, abs=1e-12)  # v is a unit vector
    np.testing.assert_allclose(g, rho ** np.arange(60) * g[0], rtol=1e-6)
    assert diagnosis.growth_per_step == pytest.approx(rho, abs=1e-6)
    assert diagnosis.spectral_radius == {"weight_hh_l0": pytest.approx(rho)}
    assert diagnosis.censored == (rho >= 1)
    assert diagnosis.gradient_horizon == (44 if rho < 1 else 60)  # 0.9 ** 43 is the last above 0.01
    assert diagnosis.findings[0].kind == ("exploding" if rho > 1 else "healthy")


def test_a_gradient_far_below_float32_is_measured():
    layer = recollect.nn.Recurrent(linear, 1, 2)
    layer.weight_hh_l0.data = 0.5 * torch.eye(2)
    diagnosis = recollect.diagnose(layer, torch.randn(1000, 1, 1))
    # Its square, 2 ** -1998, is below float64 too.
    np.testing.assert_allclose(diagnosis.grad_norm_by_lag, 0.5 ** np.arange(1000), rtol=1e-9)
    assert diagnosis.growth_per_step == pytest.approx(0.5)


@pytest.mark.parametrize("lengths", [None, [3, 9, 1, 6]])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_layers_equal_loops_written_by_hand(kind, bidirectional, lengths):
    torch.manual_seed(1)
    layer = kind(3, 5, num_layers=2, bidirectional=bidirectional)
    x = torch.randn(9, 4, 3)
    w = torch.randn(2 if bidirectional else 1, 5, dtype=torch.float64)

    def loss(output, target):
        final = output[1][0] if kind is nn.LSTM else output[1]
        top = final[-len(w) :]
        return (top * w.unsqueeze(1)).sum() + sum(row.square().sum() for row in last_rows(output[0]))

    def last_rows(y):
        return [y[length - 1, row] for row, length in enumerate(lengths or [9] * 4)]

    rows_kept, total = [], 0.0
    for row, length in enumerate(lengths or [9] * 4):
        y, finals, kept = unroll(layer, x[:length, row].double())
        value = sum((f * each).sum() for f, each in zip(finals[-len(w) :], w, strict=True)) + y[-1].square().sum()
        value.backward()
        total += value.item()
        rows_kept.append(kept)

    diagnosis = recollect.diagnose(layer, x, loss=loss, lengths=lengths)

    assert diagnosis.loss == pytest.approx(total, rel=1e-12)
    assert_same(diagnosis.curves, curves_by_hand(rows_kept))
    assert diagnosis.curve == "l1.h"
    np.testing.assert_array_equal(diagnosis.grad_norm_by_lag, diagnosis.curves["l1.h"])


class Tagger(nn.Module):
    def __init__(self, rnn, outputs=2):
        super().__init__()
        self.rnn = rnn
        width = rnn.hidden_size * (1 + rnn.bidirectional)
        self.head = nn.Linear(width, outputs)

    def forward(self, x, lengths=None):
        keywords = {} if lengths is None else {"lengths": lengths}
        return self.head(self.rnn(x, **keywords)[0])


def mse(output, target):
    return ((output - target) ** 2).mean()


def cross_entropy(output, target):
    return -torch.log_softmax(output, 0)[target]


@pytest.mark.parametrize("target_has_time", [False, True])
@pytest.mark.parametrize("compare", [mse, cross_entropy])
@pytest.mark.parametrize("batch_first", [False, True])
def test_default_losses_of_a_model_see_each_rows_last_valid_step(compare, batch_first, target_has_time):
    torch.manual_seed(2)
    model = Tagger(recollect.nn.LSTM(3, 5, batch_first=batch_first))
    lengths = [4, 7, 2]
    x = torch.randn(3, 7, 3)
    x[0, 4:] = x[2, 2:] = float("nan")
    target = torch.randn(3, 7, 2) if compare is mse else torch.randint(2, (3, 7))

    plain = nn.LSTM(3, 5)
    plain.load_state_dict(model.rnn.state_dict())
    rows_kept = []
    for row, length in enumerate(lengths):
        y, _, kept = unroll(plain, x[row, :length].double())
        output = model.head.weight.detach().double() @ y[-1] + model.head.bias.detach().double()
        wanted = target[row, length - 1]
        compare(output, wanted.double() if compare is mse else wanted).backward()
        rows_kept.append(kept)

    if not target_has_time:
        target = target[torch.arange(3), torch.tensor(lengths) - 1]
    elif not batch_first:
        target = target.transpose(0, 1)
    diagnosis = recollect.diagnose(model, x if batch_first else x.transpose(0, 1), target, lengths=lengths)

    assert_same(diagnosis.curves, curves_by_hand(rows_kept), "rnn.")


def test_a_mean_loss_is_multiplied_by_the_batch():
    torch.manual_seed(3)
    model = Tagger(nn.GRU(3, 5, batch_first=True))
    x, target = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    by_default = recollect.diagnose(model, x, target[:, -1])
    mean = recollect.diagnose(model, x, target, nn.MSELoss())
    also_mean = recollect.diagnose(model, x, target, nn.functional.mse_loss)
    total = recollect.diagnose(model, x, target, nn.MSELoss(reduction="sum"))
    np.testing.assert_allclose(mean.grad_norm_by_lag, also_mean.grad_norm_by_lag, rtol=1e-12)
    np.testing.assert_allclose(mean.grad_norm_by_lag * 6 * 2, total.grad_norm_by_lag, rtol=1e-12)
    # The explicit loss saw all 6 steps, the default one the last.
    assert not np.allclose(by_default.grad_norm_by_lag, mean.grad_norm_by_lag)
    one_by_one = [recollect.diagnose(model, x[[row]], target[[row]], nn.MSELoss()) for row in range(4)]
    rows = np.stack([each.grad_norm_by_lag for each in one_by_one])
    np.testing.assert_allclose(mean.grad_norm_by_lag, np.sqrt((rows**2).mean(0)), rtol=1e-10)


def test_a_projected_layer_has_curves_and_the_radius_of_both_its_matrices():
    torch.manual_seed(0)
    layer, x = torch.nn.LSTM(3, 6, proj_size=2), torch.randn(9, 2, 3)
    found = recollect.diagnose(layer, x)
    assert set(found.curves) == {"l0.h", "l0.c"}
    assert (found.curves["l0.c"][1:] > 0).all()
    product = layer.weight_hh_l0.chunk(4)[1].double() @ layer.weight_hr_l0.double()
    assert found.spectral_radius["weight_hh_l0.f"] == pytest.approx(
        torch.linalg.eigvals(product).abs().max().item(), rel=1e-9
    )


def test_torch_and_our_layers_in_a_model_agree():
    torch.manual_seed(4)
    theirs = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4, num_layers=2, bidirectional=True))
    ours = nn.Sequential(nn.Linear(2, 3), recollect.nn.LSTM(3, 4, num_layers=2, bidirectional=True))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 2, 2)
    one, other = recollect.diagnose(theirs, x), recollect.diagnose(ours, x)
    assert list(one.curves) == [f"1.l{k}{r}.{s}" for k in "01" for r in ("", "_reverse") for s in "hc"]
    for name, curve in one.curves.items():
        np.testing.assert_array_equal(curve, other.curves[name])
    assert one.spectral_radius == other.spectral_radius
    assert "1.weight_hh_l1_reverse.g" in one.spectral_radius


def test_packed_padded_and_lengths_agree():
    torch.manual_seed(5)
    layer = nn.LSTM(3, 4, bidirectional=True)
    x, lengths = torch.randn(8, 3, 3), torch.tensor([5, 8, 2])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    one, other = recollect.diagnose(layer, packed), recollect.diagnose(layer, x, lengths=lengths)
    for name, curve in one.curves.items():
        np.testing.assert_allclose(curve, other.curves[name], rtol=1e-12)

    class Packing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, x, lengths):
            y, _ = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return pad_packed_sequence(y)[0]

    target = torch.randn(3, 8)
    inside = recollect.diagnose(Packing(), (x, lengths), target)
    wrapped = recollect.diagnose(nn.Sequential(layer), packed, target)
    for name, curve in inside.curves.items():
        np.testing.assert_allclose(curve, wrapped.curves["0" + name[3:]], rtol=1e-12)
    assert inside.grad_norm_by_lag[0] > 0


def test_lags_count_from_lengths_that_the_model_does_not_take():
    torch.manual_seed(6)
    layer = nn.LSTM(3, 4, batch_first=True)
    x, target, lengths = torch.randn(3, 8, 3), torch.randn(3, 4), torch.tensor([5, 8, 2])
    over_padding = recollect.diagnose(nn.Sequential(layer), x, target, lengths=lengths)
    exact = recollect.diagnose(layer, x, target, lengths=lengths)
    # What comes after a row's last valid step changes nothing before it.
    for name, curve in exact.curves.items():
        assert curve.max() > 0
        np.testing.assert_allclose(over_padding.curves[f"0.{name}"], curve, rtol=1e-12)


def test_unbatched_equals_a_batch_of_one():
    torch.manual_seed(7)
    layer = nn.GRU(3, 4)
    x, target = torch.randn(6, 3), torch.randn(4)
    for each in (None, target):
        alone = recollect.diagnose(layer, x, each)
        batch = recollect.diagnose(layer, x.unsqueeze(1), None if each is None else each.unsqueeze(0))
        np.testing.assert_allclose(alone.grad_norm_by_lag, batch.grad_norm_by_lag, rtol=1e-12)


def test_permuting_the_rows_changes_nothing():
    torch.manual_seed(8)
    layer, x, lengths = nn.LSTM(2, 3), torch.randn(7, 5, 2), torch.tensor([7, 3, 0, 5, 1])
    order = torch.randperm(5)
    one = recollect.diagnose(layer, x, lengths=lengths)
    other = recollect.diagnose(layer, x[:, order], lengths=lengths[order])
    np.testing.assert_allclose(one.grad_norm_by_lag, other.grad_norm_by_lag, rtol=1e-10)
    assert len(one.grad_norm_by_lag) == 7


def test_horizon_and_growth_by_their_definitions():
    g = np.array([2.0, 1.0, 0.5, 0.02, 0.019, 0.0])
    assert flow.gradient_horizon(g) == (4, False)  # 0.02 is exactly 1 % of 2
    assert flow.growth_per_step(g) == pytest.approx((0.019 / 1.0) ** (1 / 3))
    assert flow.gradient_horizon(np.array([1.0, 0.001, 0.5])) == (3, True)
    assert flow.growth_per_step(np.array([2.0, 3.0])) == pytest.approx(1.5)
    assert flow.growth_per_step(np.array([1.0, 0.0, 4.0])) == 0.0
    assert flow.growth_per_step(np.array([1.0, 0.5, 0.0])) == 0.0
    assert flow.growth_per_step(np.array([1.0, 2.0, 4.0, np.inf])) == pytest.approx(2.0)
    assert flow.growth_per_step(np.array([1.0, 1e-300, 1e300])) == np.inf
    assert flow.gradient_horizon(np.zeros(4)) == (0, False)
    # The state c of an LSTM has no gradient at lag 0 of a loss that sees h.
    assert flow.gradient_horizon(np.array([0.0, 1.0, 0.1, 0.001])) == (3, False)
