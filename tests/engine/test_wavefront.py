"""Layers of a stack that run at the same time give the bits that they give one after the other."""

from __future__ import annotations

import ctypes
import threading
import weakref

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import recollect
from recollect import cells, nn
from recollect.engine import autograd, buffers, calls, dispatch, wavefront
from recollect.engine.llvm.division import layers_beside
from recollect.engine.llvm.team import Team
from recollect.engine.plan import Variant
from tolerances import GRADIENT, assert_bits, assert_equal

INPUTS, HIDDEN = 3, 5


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Of three steps in sequences of eleven, so that the last chunk is shorter."""
    monkeypatch.setattr(wavefront, "_CHUNKS", 4)
    monkeypatch.setattr(wavefront, "_FEWEST_STEPS", 3)
    torch.set_num_threads(2)
    torch.manual_seed(0)


@pytest.fixture
def both(monkeypatch):
    """Call a function with layers one after the other, then at the same time, from the same random state."""

    def call(function):
        found, ran, run = [], [], wavefront.run_together
        monkeypatch.setattr(wavefront, "run_together", lambda *given: ran.append(given) or run(*given))
        for at_once in (False, True):
            monkeypatch.setattr(wavefront, "pays", lambda *_, at_once=at_once: at_once)
            torch.manual_seed(1)
            found.append([*function(), torch.get_rng_state()])
            assert bool(ran) == at_once
        return found

    return call


def results(layer, x, state=None, **options):
    """What a layer returns in training and in inference, and all gradients of a loss on all of it."""

    def flat(found):
        y, *states = found
        each = [each for part in states for each in (part if isinstance(part, tuple) else (part,))]
        return [y.data if hasattr(y, "batch_sizes") else y, *each]

    rows = x.data if hasattr(x, "batch_sizes") else x
    needed = [each for each in (rows, *(state or ()), *layer.parameters()) if each.requires_grad]
    hx = None if state is None else (state if len(state) > 1 else state[0])
    found = flat(layer(x, hx, **options))
    loss = sum((each * torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view_as(each)).sum() for each in found)
    gradients = torch.autograd.grad(loss, needed)
    with torch.no_grad():
        return [*found, *gradients, *flat(layer(x, hx, **options))]


def assert_same(pair):
    for mine, alone in zip(*reversed(pair), strict=True):
        assert_bits(mine, alone)


def sequence(steps=11, batch=3, **options):
    return torch.randn(steps, batch, INPUTS, requires_grad=True, **options)


@pytest.mark.parametrize("name", ["lstm", "gru", "peephole_lstm", "slstm"])
@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cells_layers_and_threads(both, name, layers, threads):
    torch.set_num_threads(threads)
    layer = nn.Recurrent(cells.by_name(name), INPUTS, HIDDEN, layers)
    assert_same(both(lambda: results(layer, sequence())))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_number_of_steps_and_rows(both, steps, batch):
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 2)
    assert_same(both(lambda: results(layer, sequence(steps, batch))))


def test_more_units_and_rows_than_a_tile_has(both):
    layer = nn.Recurrent(cells.lstm, 33, 40, 3)
    x = torch.randn(40, 19, 33, requires_grad=True)
    assert_same(both(lambda: results(layer, x)))


LENGTHS = {"ragged": [4, 11, 1], "none at all for some": [0, 7, 0], "one step": [1, 0, 1]}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("batch_first", [False, True])
def test_unequal_lengths(both, lengths, batch_first):
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 3, batch_first=batch_first)
    x = sequence().detach()
    x = (x.transpose(0, 1).contiguous() if batch_first else x).requires_grad_()
    assert_same(both(lambda: results(layer, x, lengths=lengths)))


def test_packed_rows(both):
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 2)
    packed = pack_padded_sequence(sequence().detach(), torch.tensor([4, 11, 1]), enforce_sorted=False)
    packed = packed._replace(data=packed.data.clone().requires_grad_())
    assert_same(both(lambda: results(layer, packed)))


STATES = {"lstm": 2, "slstm": 4}


@pytest.mark.parametrize("name", STATES)
def test_initial_states(both, name):
    layer = nn.Recurrent(cells.by_name(name), INPUTS, HIDDEN, 2)
    state = tuple(torch.rand(2, 3, HIDDEN, requires_grad=True) for _ in range(STATES[name]))
    assert_same(both(lambda: results(layer, sequence(), state, lengths=[4, 0, 11])))


# Each is a kernel of its own, and they are compiled here: one cell, all that a call may add, at most two at once.
@pytest.mark.parametrize(
    ("options", "made_with"),
    [
        ({"return_states": True}, {}),
        ({"resets": True}, {}),
        ({}, {"zoneout": 0.3, "recurrent_dropout": 0.4}),
        ({"lengths": [4, 11, 0]}, {"learned_initial_state": True, "bias": False}),
    ],
    ids=["states", "resets", "noise", "learned"],
)
def test_what_a_call_may_add(both, options, made_with):
    layer = nn.Recurrent(cells.gru, INPUTS, HIDDEN, 3, **made_with)
    for name, parameter in layer.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.uniform_(parameter)
    if "resets" in options:
        options = options | {"resets": torch.rand(11, 3) < 0.3}
    assert_same(both(lambda: results(layer, sequence(), **options)))


@pytest.mark.parametrize("lengths", [None, [4, 11, 1]], ids=["dense", "ragged"])
def test_a_walk_from_the_last_step_to_the_first(both, monkeypatch, lengths):
    """No module asks for a stack of these, but the engine takes it."""

    def turned(run):
        return lambda cell, x, layout, runs: run(cell, x, layout, [each._replace(reverse=True) for each in runs])

    for name in ("run", "run_layers"):
        monkeypatch.setattr(autograd, name, turned(getattr(autograd, name)))
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 2)
    assert_same(both(lambda: results(layer, sequence(), lengths=lengths)))


# Which of x, the initial state and the parameters of three layers want gradients.
NEEDED = {
    "x": (True, False, ()), "the lowest layer": (False, False, (0,)), "the middle one": (False, False, (1,)),
    "the last one": (False, False, (2,)), "x and the last one": (True, False, (2,)),
    "the initial states": (False, True, ()),
}  # fmt: skip


@pytest.mark.parametrize(("of_x", "of_state", "of_layers"), NEEDED.values(), ids=NEEDED.keys())
def test_only_the_gradients_that_are_needed(both, of_x, of_state, of_layers):
    layer = nn.Recurrent(cells.gru, INPUTS, HIDDEN, 3)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(any(name.endswith(f"_l{place}") for place in of_layers))
    state = (torch.rand(3, 3, HIDDEN, requires_grad=of_state),)
    x = sequence().detach().requires_grad_(of_x)
    assert_same(both(lambda: results(layer, x, state)))
    y, _ = layer(x, state[0])
    y.sum().backward()
    for leaf in (x, *state, *layer.parameters()):
        assert (leaf.grad is not None) == leaf.requires_grad


@pytest.mark.parametrize("place", [0, 1, 2], ids=["y", "h", "c"])
def test_a_loss_on_one_result_alone(both, place):
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 2)

    def gradients():
        x = sequence()
        y, state = layer(x)
        return torch.autograd.grad((y, *state)[place].square().sum(), [x, *layer.parameters()])

    assert_same(both(gradients))


def test_second_derivatives_and_many_gradients_at_once(monkeypatch):
    monkeypatch.setattr(wavefront, "pays", lambda *_: True)
    layer = nn.Recurrent(cells.gru, INPUTS, HIDDEN, 2, dtype=torch.float64)
    x = sequence(4, 2, dtype=torch.float64)
    weight = layer.weight_hh_l0

    def call(x, weight):
        return torch.func.functional_call(layer, {"weight_hh_l0": weight}, (x,))[0]

    assert torch.autograd.gradcheck(call, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, weight), fast_mode=True)
    y = call(x, weight)
    assert y.grad_fn.name() == "_LayersBackward"
    many = torch.randn(3, *y.shape, dtype=torch.float64)
    at_once = torch.autograd.grad(y, [x, weight], many, is_grads_batched=True, retain_graph=True)
    for place, grad in enumerate(many):
        for mine, alone in zip(at_once, torch.autograd.grad(y, [x, weight], grad, retain_graph=True), strict=True):
            assert_equal(mine[place], alone, GRADIENT)


@pytest.mark.parametrize("present", [1, 2])
def test_a_team_of_fewer_threads_than_were_asked_for(both, monkeypatch, present):
    """OpenMP may give as few as one: nested in a region of the caller's, or short of threads."""
    torch.set_num_threads(4)
    asked, who = [], threading.local()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    def parallel(region, arguments, count, _):
        def be(number):
            who.number = number
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(region)(arguments)

        asked.append(count)
        others = [threading.Thread(target=be, args=(number,)) for number in range(1, present)]
        for other in others:
            other.start()
        be(0)
        for other in others:
            other.join()

    thread_num = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: who.number)
    num_threads = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: present)
    yield_thread = ctypes.CFUNCTYPE(ctypes.c_int)(("sched_yield", ctypes.CDLL(None)))
    functions = (parallel, thread_num, num_threads, yield_thread)
    *of_region, its_yield = (ctypes.cast(each, ctypes.c_void_p).value for each in functions)
    monkeypatch.setattr(calls, "team", lambda: Team(*of_region, "", its_yield))
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 4)
    assert_same(both(lambda: results(layer, sequence())))
    assert asked == [4] * 3, "forward and backward in training, and forward in inference"


def test_memory_is_let_go_of_with_the_graph(monkeypatch):
    monkeypatch.setattr(wavefront, "pays", lambda *_: True)
    monkeypatch.setattr(buffers, "_pool", buffers.Pool(limit=0))
    layer, x = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 3), sequence()
    y, _ = layer(x)
    kept = [weakref.ref(each) for each in y.grad_fn.saved_tensors[-5:]]  # of three layers, and two between them
    assert all(each() is not None for each in kept)
    y.sum().backward()
    assert not any(each() is not None for each in kept)


def test_a_tensor_that_was_changed_in_between_is_noticed(monkeypatch):
    monkeypatch.setattr(wavefront, "pays", lambda *_: True)
    layer, x = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, 2), sequence()
    y, _ = layer(x)
    with torch.no_grad():
        layer.weight_hh_l1.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# When it is done --------------------------------------------------------------------------------


def test_layers_run_at_once_where_each_alone_would_have_one_thread():
    kernels = calls.kernels_of(cells.lstm, torch.float32, Variant())

    def of(batch, inputs, hidden, steps=100, threads=2, layers=2):
        return layers_beside(kernels, inputs, hidden, batch, batch * steps, steps, threads, layers)

    assert of(1, 16, 64)
    assert of(7, 32, 64)
    assert not of(1, 16, 64, threads=1)
    assert not of(1, 16, 32)  # too little to wake anybody
    assert of(1, 16, 32, layers=4)
    assert not of(8, 16, 64)  # rows are shared
    assert not of(1, 64, 256)  # units are
    assert not of(1, 600, 64)  # those of the first layer


def at_once(lengths=None, training=True, backend="auto", num_layers=2, **options):
    """Whether the layers of such a stack, large enough for it, run at the same time."""
    layer, ran, run = nn.Recurrent(cells.lstm, 16, 64, num_layers, **options), [], wavefront.run_together
    with pytest.MonkeyPatch.context() as patch, recollect.set_backend(backend):
        patch.setattr(wavefront, "run_together", lambda *given: ran.append(given) or run(*given))
        layer.train(training)(torch.randn(100, 1, 16), lengths=lengths)
    return bool(ran)


def test_layers_run_one_after_the_other_where_they_must():
    assert at_once()
    assert at_once(backend="llvm")
    assert at_once(dropout=0.5, training=False)
    assert not at_once(dropout=0.5)
    assert not at_once(bidirectional=True)
    assert not at_once(num_layers=1)
    assert not at_once(checkpoint=10)
    assert not at_once(proj_size=8)
    assert not at_once(backend="reference")
    assert not at_once(lengths=[0])
    torch.set_num_threads(1)
    assert not at_once()


def test_whoever_listens_hears_every_layer():
    layer, heard = nn.Recurrent(cells.lstm, 16, 64, 2), []
    with dispatch.listening(heard.append):
        layer(torch.randn(100, 1, 16))
    assert heard == ["l0", "l1"]
