"""Products of numbers rounded to bfloat16: exactly those, close to float32, and nowhere unasked.

Where this machine has no instructions for it, the kernels are made of others (`products.Pairs`).
"""

from __future__ import annotations

import ctypes
import dataclasses
import math

import pytest
import torch

import recollect
from forgetting import forget_problems
from recollect import cells, nn
from recollect.engine import calls, precision
from recollect.engine.llvm import kernels
from recollect.engine.llvm.division import Division
from recollect.engine.llvm.kernel import Kernel
from recollect.engine.llvm.kernels import Function, kernels_for
from recollect.engine.llvm.machine import Code, compile_module, host
from recollect.engine.llvm.products import Pairs
from recollect.engine.llvm.tiling import without_tiles
from recollect.engine.plan import Variant
from recollect.errors import BackendError, InputError
from tolerances import assert_bits, assert_equal

HOST = host()
HERE = HOST if HOST.bfloat16 else dataclasses.replace(HOST, bfloat16="emulated")
LACKING = dataclasses.replace(HOST, bfloat16="")

# Norm of the difference over the norm. A number beside the middle between two neighbours is rounded to the other one
# now and then, as kernels compute in float32 and the truth in float64.
AS_ROUNDED, AS_FLOAT32 = 2e-4, 2e-2

_kernels: dict[tuple[object, ...], kernels.Kernels] = {}


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch):
    """This machine, or one like it, that can."""
    become(monkeypatch, HERE)
    monkeypatch.setattr(kernels, "_CACHE", _kernels)
    yield
    forget_problems()


def become(monkeypatch, machine):
    for module in (kernels, precision):
        monkeypatch.setattr(module, "host", lambda: machine)
    forget_problems()


def distance(found, true):
    return ((found.double() - true.double()).norm() / true.double().norm()).item()


# Rounding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, True])
def test_numbers_are_rounded_to_nearest_even(native):
    if native and HOST.bfloat16 != "native":
        pytest.skip("this machine has no AVX512-BF16")
    lanes = HOST.lanes("float32")
    kernel = Kernel(without_tiles("float32", lanes), ("x", "out", "count"))
    e = kernel.entry("rounding")
    with e.loop(0, kernel.slot(e, "count"), lanes) as at:
        e.halves().store(
            Pairs(native=native).rounded(e, e.load(kernel.pointer(e, "x"), at)), kernel.pointer(e, "out"), at
        )
    e.builder.ret_void()
    function = Function("rounding", kernel.slots, Code(compile_module(str(kernel.module), HOST), HOST))

    # Every sign, exponent and kept digit, with what is cut off at, beside and far from the middle.
    cut = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = ((torch.arange(1 << 16)[:, None] << 16) + cut).flatten().to(torch.int32).view(torch.float32)
    found = torch.empty(len(x), dtype=torch.int16)
    given = {"x": x.data_ptr(), "out": found.data_ptr(), "count": len(x)}
    function.run((ctypes.c_int64 * len(kernel.slots))(*(given.get(slot, 0) for slot in kernel.slots)))
    found = found.view(torch.bfloat16)

    denormal = x.abs() < torch.finfo(torch.float32).tiny
    expected = torch.where(denormal, x * 0.0, x).bfloat16()
    numbers = ~x.isnan()
    assert torch.equal(found[numbers].view(torch.int16), expected[numbers].view(torch.int16))
    assert found[~numbers].isnan().all()


# The truth: a loop in float64, with everything that is multiplied rounded first --------------------


def rounded(tensor):
    return tensor.bfloat16().to(tensor.dtype)


class Product(torch.autograd.Function):
    """x W' of rounded numbers; and so are the products of its derivative."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return rounded(x) @ rounded(w).T

    @staticmethod
    def backward(ctx, grad):
        x, w = map(rounded, ctx.saved_tensors)
        return rounded(grad) @ w, rounded(grad).T @ x


class Rows(torch.autograd.Function):
    """A vector in every row; the gradient of each row is rounded before they are added."""

    @staticmethod
    def forward(ctx, vector, rows):
        return vector.expand(rows, -1)

    @staticmethod
    def backward(ctx, grad):
        return rounded(grad).sum(0), None


def truth(cell, x, lengths, states, weights, *, reverse=False, resets=None, feed_mask=1.0, keep=()):
    """y [T, B, H] and the states after each row's last step, [B, H] each; all rows are walked to the end."""
    w_ih, w_hh, b_ih, b_hh, *vectors = weights
    rows, current, ys = x.shape[1], list(states), [torch.empty(0)] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        prev = current if resets is None else [
            torch.where(resets[t][:, None], first, s) for first, s in zip(states, current, strict=True)
        ]  # fmt: skip
        inp = Product.apply(x[t], w_ih) + Rows.apply(b_ih, rows)
        rec = Product.apply(prev[0] * feed_mask, w_hh) + Rows.apply(b_hh, rows)
        vec = cell.Vectors(*(Rows.apply(each, rows) for each in vectors))
        gates = len(cell.gates)
        new = cell(cell.Shares(*inp.chunk(gates, -1)), cell.Shares(*rec.chunk(gates, -1)), cell.States(*prev), vec)
        if keep:
            new = [k[t] * old + (1 - k[t]) * s for k, old, s in zip(keep, prev, new, strict=True)]
        active = (t < lengths)[:, None]
        ys[t] = torch.where(active, new[0], torch.zeros_like(new[0]))
        current = [torch.where(active, s, old) for s, old in zip(new, current, strict=True)]
    return torch.stack(ys), current


@recollect.cell(gates="a b c", states="h m", vectors="v w")
def mine(inp, rec, prev, vec):
    m = torch.sigmoid(inp.a + rec.a + vec.v) * prev.m + vec.w * torch.tanh(inp.b * rec.b)
    return torch.tanh(m + inp.c + rec.c) + 0.1 * prev.h, m


CELLS = {
    "lstm": (cells.lstm, 5, 19),
    "gru": (cells.gru, 37, 35),  # its shares apart, an odd number of gates in all
    "peephole_lstm": (cells.peephole_lstm, 3, 8),
    "rnn_tanh": (cells.rnn_tanh, 8, 33),
    "mine": (mine, 13, 21),
}


def check(layer, x, lengths, *, truths, **options):
    """Outputs, final states and gradients equal the truth, and come close to float32.

    ``truths`` are the arguments of `truth` for each direction.
    """
    hidden, parameters = layer.hidden_size, list(layer.parameters())
    states = [torch.randn(len(truths), x.shape[1], hidden, requires_grad=True) for _ in layer.cell.states]
    given = states[0] if len(states) == 1 else tuple(states)
    weight = torch.linspace(-1, 1, hidden)
    names = ["y", *layer.cell.states, "dx", *(f"d{state}" for state in layer.cell.states)]
    names += [f"d{name}" for name, _ in layer.named_parameters()]

    def results(y, final, wanted):
        loss = (y.unflatten(-1, (-1, hidden)) * weight).sum() + sum((each * each).sum() for each in final)
        return [y, *final, *torch.autograd.grad(loss, wanted)]

    def ours(how):
        torch.manual_seed(7)  # the same noise
        with how:
            y, final = layer(x, given, lengths=lengths, **options)
        return results(y, final if isinstance(final, tuple) else (final,), [x, *states, *parameters])

    found, plain = ours(recollect.set_precision("bfloat16")), ours(recollect.set_backend("reference"))
    wide = [each.detach().double().requires_grad_() for each in (x, *states, *parameters)]
    wide_x, wide_states, wide_parameters = wide[0], wide[1 : 1 + len(states)], wide[1 + len(states) :]
    each, parts = len(parameters) // len(truths), []
    for place, more in enumerate(truths):
        own = wide_parameters[each * place : each * (place + 1)]
        given_states = [state[place] for state in wide_states]
        parts.append(truth(layer.cell, wide_x, lengths, given_states, own, reverse=place == 1, **more))
    final = [torch.stack(of_state) for of_state in zip(*(final for _, final in parts), strict=True)]
    true = results(torch.cat([y for y, _ in parts], -1), final, wide)
    for name, ours_, true_, plain_ in zip(names, found, true, plain, strict=True):
        assert distance(ours_, true_) < AS_ROUNDED, name
        assert distance(ours_, plain_) < AS_FLOAT32, name
    assert distance(found[0], plain[0]) > 2 * AS_ROUNDED, "it is float32"


@pytest.mark.parametrize("name", CELLS)
def test_kernels_multiply_rounded_numbers(name):
    cell, inputs, hidden = CELLS[name]
    torch.manual_seed(0)
    layer = nn.Recurrent(cell, inputs, hidden)
    x = torch.randn(6, 7, inputs, requires_grad=True)
    check(layer, x, torch.tensor([6, 1, 3, 4, 1, 6, 2]), truths=[{}])


def test_with_everything_that_a_call_can_add():
    """Both directions, resets, zoneout and a mask of what W_hh multiplies."""
    torch.manual_seed(1)
    cell, steps, batch, inputs, hidden = cells.lstm, 6, 7, 5, 19
    layer = nn.Recurrent(cell, inputs, hidden, bidirectional=True, zoneout=0.2, recurrent_dropout=0.3)
    x, resets = torch.randn(steps, batch, inputs, requires_grad=True), torch.rand(steps, batch) < 0.2
    torch.manual_seed(7)
    mask, mask_reverse, *keep = (each.double() for each in layer._noise(x, batch))
    truths = [
        {"resets": resets, "feed_mask": mask, "keep": keep[:2]},
        {"resets": resets, "feed_mask": mask_reverse, "keep": keep[2:]},
    ]
    check(layer, x, torch.tensor([6] * batch), truths=truths, resets=resets)


# What does not change the numbers ------------------------------------------------------------------


def gradients(layer, x, how=None, back=None, **options):
    """y and all gradients, under a setting for the forward and one for the backward pass."""
    with recollect.set_precision(how or "bfloat16"):
        y = layer(x, **options)[0]
    with recollect.set_precision(back or how or "bfloat16"):
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


def test_no_division_among_threads_changes_a_bit(monkeypatch):
    torch.manual_seed(2)
    layer, x = nn.Recurrent(cells.gru, 13, 65, bidirectional=True), torch.randn(5, 27, 13, requires_grad=True)
    lengths = torch.randint(0, 6, (27,))

    def under(division):
        monkeypatch.setattr(calls, "divide", lambda *_: division)
        forget_problems()
        with torch.no_grad(), recollect.set_precision("bfloat16"):
            inferred = layer(x, lengths=lengths)[0]
        return [inferred, *gradients(layer, x), *gradients(layer, x, lengths=lengths)]

    expected = under(Division(1, False))
    assert_bits(expected[0], expected[1 + len(expected) // 2])
    for division in (Division(2, False), Division(3, False), Division(2, True), Division(3, True)):
        for found, wanted in zip(under(division), expected, strict=True):
            assert_bits(found, wanted, str(division))


def test_batch_first_and_a_long_sequence_in_segments():
    torch.manual_seed(3)
    layer, x = nn.LSTM(5, 19), torch.randn(6, 7, 5, requires_grad=True)
    first = nn.LSTM(5, 19, batch_first=True)
    first.load_state_dict(layer.state_dict())
    expected = gradients(layer, x)
    y, dx, *others = gradients(first, x.detach().transpose(0, 1).clone().requires_grad_())
    for found, wanted in zip([y.transpose(0, 1), dx.transpose(0, 1), *others], expected, strict=True):
        assert_bits(found, wanted)
    layer.checkpoint = 2
    for back in ("bfloat16", "float32"):
        for found, wanted in zip(gradients(layer, x, back=back), expected, strict=True):
            assert distance(found, wanted) < 1e-6


def test_the_backward_pass_uses_what_the_forward_pass_chose():
    torch.manual_seed(4)
    layer, x = nn.LSTM(5, 19), torch.randn(6, 7, 5, requires_grad=True)
    rounding, plain = gradients(layer, x), gradients(layer, x, "float32")
    assert distance(rounding[2], plain[2]) > AS_ROUNDED
    for found, wanted in zip(gradients(layer, x, back="float32"), rounding, strict=True):
        assert_bits(found, wanted)
    for found, wanted in zip(gradients(layer, x, "float32", "bfloat16"), plain, strict=True):
        assert_bits(found, wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler
def test_a_graph_keeps_the_precision_in_which_it_was_traced():
    torch.manual_seed(5)
    torch.compiler.reset()
    layer, x = nn.LSTM(5, 19), torch.randn(6, 7, 5, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def of_graph(how, back):
        with recollect.set_precision(how):
            y = compiled(x)[0]
        with recollect.set_precision(back):
            return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    for how, back in (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")):
        for found, wanted in zip(of_graph(how, back), gradients(layer, x, how), strict=True):
            assert_bits(found, wanted, f"{how}, then {back}")
    with recollect.set_precision("bfloat16"), torch.no_grad():
        exported = torch.export.export(layer, (x.detach(),)).module()
        expected = layer(x)[0]
    with torch.no_grad():
        assert_bits(exported(x.detach())[0], expected)
    torch.compiler.reset()


def test_one_step_of_a_cell_module():
    torch.manual_seed(6)
    step, layer, x = nn.LSTMCell(5, 19), nn.LSTM(5, 19), torch.randn(7, 5)
    for name, parameter in step.named_parameters():
        layer.get_parameter(f"{name}_l0").data.copy_(parameter)
    with recollect.set_precision("bfloat16"), torch.no_grad():
        assert_bits(step(x)[0], layer(x[None])[0][0])
        assert "bfloat16" in step.backend_for(x)


def test_what_is_not_finite_stays_so():
    torch.manual_seed(8)
    layer, x = nn.RNN(13, 33), torch.randn(4, 5, 13)  # what stands behind a row is no half of its last pair
    x[1, 1, 0], x[2, 2, 12], x[0, 3, 0] = math.nan, math.inf, -math.inf
    with torch.no_grad(), recollect.set_precision("bfloat16"):
        y, _ = layer(x)
    assert y[1:, 1].isnan().all()
    assert torch.equal(y[2, 2].abs(), torch.ones(33))
    assert torch.equal(y[0, 3].sign(), -layer.weight_ih_l0[:, 0].sign())
    assert y[:, [0, 2, 3, 4]].isfinite().all()


def test_other_dtypes_and_second_derivatives_are_as_without():
    torch.manual_seed(9)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    layer = nn.LSTM(5, 19, dtype=torch.float64)
    for found, wanted in zip(gradients(layer, x), gradients(layer, x, "float32"), strict=True):
        assert_bits(found, wanted)
    with recollect.set_precision("bfloat16"):
        assert "bfloat16" not in layer.backend_for(x)
    layer, x = nn.LSTM(5, 19), torch.randn(4, 3, 5, requires_grad=True)

    def second():
        y = layer(x)[0]
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    with recollect.set_precision("bfloat16"):
        found = second()
    with recollect.set_backend("reference"):
        assert_equal(found, second())


# The setting --------------------------------------------------------------------------------------


def test_set_precision_is_a_function_and_a_context():
    layer, x = nn.LSTM(2, 3), torch.zeros(4, 1, 2)
    assert "bfloat16" not in layer.backend_for(x)
    recollect.set_precision("bfloat16")
    assert "multiplying in bfloat16" in layer.backend_for(x)
    with recollect.set_precision("float32"):
        assert "bfloat16" not in layer.backend_for(x)
    assert layer.backend_for(x).startswith("llvm: ")
    with pytest.raises(KeyError), recollect.set_precision("float32"):
        raise KeyError
    assert "bfloat16" in layer.backend_for(x)


@pytest.mark.parametrize("name", ["float64", "bf16", "", None])
def test_an_unknown_precision_is_named_and_changes_nothing(name):
    with pytest.raises(InputError, match="float32, bfloat16"):
        recollect.set_precision(name)
    assert precision._precision.name() == "float32"


def test_a_machine_without_it_refuses(monkeypatch):
    become(monkeypatch, LACKING)
    with pytest.raises(BackendError, match="bfloat16") as caught:
        recollect.set_precision("bfloat16")
    assert caught.value.given == HOST.cpu
    assert "AVX512-BF16" in str(caught.value)
    assert 'set_precision("float32")' in str(caught.value)
    assert precision._precision.name() == "float32"
    # As does a graph that was traced on another one.
    monkeypatch.setattr(kernels, "_CACHE", {})
    cell = cells.lstm
    with pytest.raises(BackendError, match="AVX512-BF16"):
        kernels_for(cell.graph, cell.gates, cell.states, cell.vectors, "float32", Variant(bfloat16=True))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_another_backend_says_that_it_computes_in_float32(backend):
    layer, x = nn.LSTM(2, 3), torch.randn(4, 1, 2)
    with recollect.set_backend(backend):
        expected = layer(x)[0]
        with recollect.set_precision("bfloat16"):
            said = layer.backend_for(x)
            assert_bits(layer(x)[0], expected)
    assert said.startswith(f"{backend}: ")
    assert "float32, as only llvm multiplies in bfloat16" in said
    with recollect.set_precision("bfloat16"):
        projected = nn.LSTM(2, 3, proj_size=2)
        assert projected.backend_for(x).startswith("torch: ")
        assert projected(x)[0].shape == (4, 1, 2)
