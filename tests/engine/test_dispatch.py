"""Which backend serves a call, that it is said openly, and that kernels are made once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import recollect
from recollect import cells, nn
from recollect.engine import dispatch, reference
from recollect.engine.llvm import kernels
from recollect.errors import BackendError, InputError, NotYetError, RecollectError
from tolerances import assert_bits, assert_equal, error


@pytest.fixture
def unwarned(monkeypatch):
    """A process that has not warned yet."""
    monkeypatch.setattr(dispatch, "_warned", False)


@pytest.fixture
def compiled(monkeypatch):
    """A list that grows with every kernel that is compiled."""
    made, compile_module = [], kernels.compile_module

    def counting(*arguments):
        made.append(arguments)
        return compile_module(*arguments)

    monkeypatch.setattr(kernels, "compile_module", counting)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_llvm_serves_single_and_double_precision(dtype):
    layer = nn.LSTM(2, 3, dtype=dtype)
    text = layer.backend_for(torch.zeros(4, 1, 2, dtype=dtype))
    assert text.startswith("llvm: ")
    assert str(dtype).removeprefix("torch.") in text
    for other in ("reference", "torch", "triton"):
        assert other in text


def test_the_reference_says_why_it_serves():
    x = torch.zeros(4, 1, 2)
    projected = nn.Recurrent(cells.peephole_lstm, 2, 3, proj_size=2).backend_for(x)
    assert projected.startswith("reference: ")
    assert "proj_size" in projected
    assert "'peephole_lstm'" in projected
    with recollect.set_backend("reference"):
        chosen = nn.LSTM(2, 3).backend_for(x)
    assert chosen.startswith("reference: ")
    assert "set_backend" in chosen


def test_backend_for_takes_a_packed_sequence():
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])
    assert nn.GRU(2, 3).backend_for(packed).startswith("llvm: ")


def test_one_warning_a_process(unwarned):
    first = nn.Recurrent(cells.peephole_lstm, 2, 3, 2, proj_size=2)
    second = nn.Recurrent(cells.cifg_lstm, 2, 3, proj_size=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            first(torch.zeros(3, 1, 2))
            second(torch.zeros(3, 1, 2))
    (only,) = caught
    assert "'peephole_lstm'" in str(only.message)


@pytest.mark.parametrize("forced", ["reference", "auto"])
def test_no_warning_where_nothing_slower_was_taken_in_silence(forced, unwarned):
    dtype = torch.bfloat16 if forced == "reference" else torch.float32
    with recollect.set_backend(forced):
        nn.LSTM(2, 3, dtype=dtype)(torch.zeros(3, 1, 2, dtype=dtype))


def test_a_call_inside_a_torch_func_transform_has_the_same_gradient(unwarned):
    layer, x = nn.GRU(2, 3, dtype=torch.float64), torch.randn(4, 2, 2, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    layer(leaf)[0].square().sum().backward()
    with pytest.warns(UserWarning, match=r"torch\.func"):
        found = torch.func.grad(lambda value: layer(value)[0].square().sum())(x)
    assert_equal(found, leaf.grad)


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_has_its_tangent_or_says_that_it_cannot(frozen, unwarned):
    """Never a tangent that is silently missing."""
    layer = nn.GRU(2, 3, dtype=torch.float64).requires_grad_(not frozen)
    x, direction = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    _, expected = torch.autograd.functional.jvp(lambda value: layer(value)[0], x, direction)
    with warnings.catch_warnings(), torch.autograd.forward_ad.dual_level():
        warnings.simplefilter("ignore")
        try:
            y, _ = layer(torch.autograd.forward_ad.make_dual(x, direction))
        except (NotImplementedError, RuntimeError):
            return
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    assert_equal(tangent, expected)


def test_a_batch_of_gradients_at_once():
    layer, x = nn.GRU(2, 3, dtype=torch.float64), torch.randn(4, 1, 2, dtype=torch.float64)

    def call(value):
        return layer(value)[0]

    jacobian = torch.autograd.functional.jacobian
    assert_equal(jacobian(call, x, vectorize=True), jacobian(call, x))


def test_vmap_over_sequences(unwarned):
    layer, x = nn.LSTM(2, 3, dtype=torch.float64), torch.randn(5, 4, 2, 2, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"torch\.func"):
        found = torch.func.vmap(lambda value: layer(value)[0])(x)
    assert_equal(found, torch.stack([layer(each)[0] for each in x]))


def test_what_records_operations_gets_operations(unwarned):
    """Under a dispatch mode tensors may have no memory of their own, and a kernel's work would not be recorded."""
    layer, x = nn.LSTM(2, 3).requires_grad_(False), torch.randn(2, 4, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorded = make_fx(lambda value: layer(value)[0])(x[0])
    assert_equal(recorded(x[1]), layer(x[1])[0])


def test_a_lazily_negated_tensor_has_its_own_values():
    layer, x = nn.LSTM(2, 3), torch.randn(4, 2, 2)
    assert_bits(layer(torch._neg_view(x))[0], layer(-x)[0])


def test_set_backend_is_a_function_and_a_context():
    layer, x = nn.LSTM(2, 3), torch.zeros(4, 1, 2)
    recollect.set_backend("reference")
    assert layer.backend_for(x).startswith("reference")
    with recollect.set_backend("llvm"):
        assert layer.backend_for(x).startswith("llvm")
        with recollect.set_backend("auto"):
            pass
        assert dispatch._backend.name() == "llvm"
    assert layer.backend_for(x).startswith("reference")
    with pytest.raises(KeyError), recollect.set_backend("llvm"):
        raise KeyError
    assert layer.backend_for(x).startswith("reference")


@pytest.mark.parametrize("name", ["fast", "", "LLVM", None])
def test_an_unknown_backend_is_named_and_changes_nothing(name):
    with pytest.raises(InputError, match="auto, reference, llvm"):
        recollect.set_backend(name)
    assert dispatch._backend.name() == "auto"


@pytest.mark.parametrize("name", ["triton"])
def test_a_backend_to_come_is_said_to_be(name):
    with pytest.raises(NotYetError, match=name):
        recollect.set_backend(name)
    assert dispatch._backend.name() == "auto"


def test_a_forced_backend_that_cannot_serve_is_an_error():
    layer = nn.LSTM(2, 3, proj_size=2)
    with recollect.set_backend("llvm"):
        for call in (layer, layer.backend_for):
            with pytest.raises(BackendError, match=r"proj_size.*set_backend"):
                call(torch.zeros(4, 1, 2))
    with recollect.set_backend("torch"):
        for forced in (nn.Recurrent(cells.mgu, 2, 3), nn.LSTM(2, 3, zoneout=0.1)):
            for call in (forced, forced.backend_for):
                with pytest.raises(BackendError, match=r"mgu|zoneout"):
                    call(torch.zeros(4, 1, 2))
    assert issubclass(BackendError, RecollectError)


def test_the_reference_really_is_the_reference(monkeypatch):
    calls, run = [], reference.run
    monkeypatch.setattr(reference, "run", lambda *a, **k: calls.append(1) or run(*a, **k))
    layer, x = nn.LSTM(2, 3, num_layers=2, bidirectional=True), torch.zeros(4, 1, 2)
    layer(x)
    assert not calls
    with recollect.set_backend("reference"):
        layer(x)
    assert len(calls) == 4


def test_no_shape_of_the_input_compiles_anything_new(compiled):
    @recollect.cell(gates="a b", states="h", vectors="v")
    def fresh(inp, rec, prev, vec):
        return torch.tanh(inp.a + rec.a * vec.v) * inp.b - 0.1271 * rec.b

    # No width exceeds a vector's of any machine: panels of other widths have kernels of their own.
    layer = nn.Recurrent(fresh, 3, 2, num_layers=2, bidirectional=True)

    def use(steps, batch, lengths):
        x = torch.randn(steps, batch, 3, requires_grad=True)
        layer(x, lengths=lengths)[0].sum().backward()
        with torch.inference_mode():
            layer(x, lengths=lengths)

    use(3, 2, None)
    first = len(compiled)
    assert first == 3, "one kernel each for inference, training and backward"
    for steps, batch, lengths in ((1, 1, None), (7, 20, None), (5, 3, [2, 0, 5]), (2, 9, [0] * 9), (40, 33, None)):
        use(steps, batch, lengths)
    assert len(compiled) == first
    nn.Recurrent(fresh, 4, 3)(torch.randn(2, 2, 4))
    assert len(compiled) == first, "another layer of the same cell and width shares the kernels"


def test_inference_stores_nothing_and_needs_one_kernel(compiled):
    @recollect.cell(gates="a", states="h")
    def lean(inp, rec, prev):
        return torch.tanh(inp.a + rec.a) * 0.31719

    with torch.no_grad():
        nn.Recurrent(lean, 2, 3)(torch.randn(3, 2, 2))
    assert len(compiled) == 1


def test_two_cells_of_one_name_stay_apart():
    def declare(sign):
        @recollect.cell(gates="a", states="h")
        def mine(inp, rec, prev):
            return torch.tanh(inp.a + rec.a) * sign

        return mine

    up, down = declare(1.0), declare(-0.5)
    assert up.name == down.name
    torch.manual_seed(0)
    first = nn.Recurrent(up, 2, 3, dtype=torch.float64)
    second = nn.Recurrent(down, 2, 3, dtype=torch.float64)
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    ours = [layer(x)[0] for layer in (first, second)]
    with recollect.set_backend("reference"):
        truth = [layer(x)[0] for layer in (first, second)]
    for mine, true in zip(ours, truth, strict=True):
        assert_equal(mine, true)
    assert error(*ours) > 0.1


def test_two_cells_of_one_content_share_their_kernels(compiled):
    def declare():
        @recollect.cell(gates="a", states="h")
        def mine(inp, rec, prev):
            return torch.sin(inp.a + rec.a) * 0.71828

        return mine

    torch.manual_seed(0)
    first, second = (nn.Recurrent(declare(), 2, 3) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 2, 2)
    with torch.no_grad():
        assert_bits(first(x)[0], second(x)[0])
    assert len(compiled) == 1
