"""Under torch.compile and torch.export a layer is one operator, whose results are those of the eager layer."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

import recollect
from recollect import cells, nn
from recollect.engine import autograd
from recollect.nn import compiled
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning",  # of torch's compiler
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # the same, after a break of the graph
    "ignore:recollect runs on the reference",  # all states of a projected layer; transforms
    "ignore:`torch.jit.script` is deprecated",  # torch.func's own forward mode uses it
)  # fmt: skip

LAYERS = {
    "lstm": lambda: nn.LSTM(3, 5),
    "two layers, both ways": lambda: nn.GRU(3, 5, 2, bidirectional=True),
    "batch first, no bias": lambda: nn.RNN(3, 5, batch_first=True, bias=False),
    "projected": lambda: nn.LSTM(3, 5, 2, proj_size=2),
    "learned state": lambda: nn.LSTM(3, 5, learned_initial_state=True),
    "vectors": lambda: nn.Recurrent(cells.peephole_lstm, 3, 5),
}


class Counted:
    """A compiler backend that keeps the graphs that it is given and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward

    def targets(self):
        return [str(node.target) for graph in self.graphs for node in graph.graph.nodes if node.op == "call_function"]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def call(layer, x, lengths=None, resets=None):
    return layer(x, lengths=lengths, resets=resets, return_states=True)


def arguments(layer, steps, batch):
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    lengths = torch.randint(0, steps + 1, (batch,))
    return torch.randn(*shape, 3), {"dense": {}, "lengths": {"lengths": lengths}, "resets": {
        "lengths": lengths, "resets": torch.rand(shape) < 0.3}}  # fmt: skip


def flat(results):
    return [each for part in results for each in (part if isinstance(part, tuple) else (part,))]


@pytest.mark.parametrize("how", ["dense", "lengths", "resets"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_whole_graph_for_any_batch_and_time(name, how):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    compiled_call = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, (steps, batch) in enumerate([(7, 4), (9, 2), (5, 6)]):
        x, ways = arguments(layer, steps, batch)
        with torch.compiler.set_stance("default" if not count else "fail_on_recompile"):
            found = flat(compiled_call(layer, x.requires_grad_(), **ways[how]))
        expected = flat(call(layer, x, **ways[how]))
        for mine, true in zip(found, expected, strict=True):
            assert_bits(mine, true)
        wanted = [x, *layer.parameters()]
        gradients = [
            torch.autograd.grad(sum(each.square().sum() for each in outputs), wanted, allow_unused=True)
            for outputs in (found, expected)
        ]
        for mine, true in zip(*gradients, strict=True):
            if true is not None:
                assert_equal(mine, true, GRADIENT)


@pytest.mark.parametrize("steps", [3, 300])
def test_a_call_is_one_node_whatever_the_length(steps):
    """pytorch/pytorch#97155, #154652: an unrolled cell takes a compiler minutes to hours."""
    backend, layer = Counted(), nn.LSTM(3, 5, 2, bidirectional=True)
    torch.compile(layer, fullgraph=True, backend=backend)(torch.randn(steps, 2, 3))
    targets = backend.targets()
    assert sum("recurrent" in target for target in targets) == 1
    assert len(targets) < 15


@pytest.mark.parametrize("sorts", [True, False], ids=["any order", "sorted"])
def test_a_packed_sequence_is_not_unrolled_either(sorts):
    """torch itself cannot make one in a whole graph, but it may come as an input, or after a break of the graph."""
    torch.manual_seed(0)
    backend, layer = Counted(), nn.LSTM(3, 5, 2, bidirectional=True)
    lengths = torch.tensor([3, 1, 7, 2]) if sorts else torch.tensor([7, 3, 2, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(7, 4, 3), lengths, enforce_sorted=not sorts)

    def total(packed):
        y, (h, c) = layer(packed)
        return y.data.square().sum() + h.sum() + c.sum()

    found = torch.compile(total, fullgraph=sorts, backend=backend)(packed)
    assert_bits(found, total(packed))
    assert sum("recurrent" in target for target in backend.targets()) == 1
    assert len(backend.targets()) < 25


def test_two_cells_of_one_name_stay_apart():
    def declare(sign):
        @recollect.cell(gates="a", states="h")
        def mine(inp, rec, prev):
            return torch.tanh(inp.a + rec.a) * sign

        return mine

    x = torch.randn(4, 2, 3)
    for sign in (1.0, -0.5):
        layer = nn.Recurrent(declare(sign), 3, 5)
        assert_bits(torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0], layer(x)[0])


def test_noise_is_drawn_outside_of_the_operator(monkeypatch):
    """By torch's own operations, where the eager layer has a kernel for it: so the same bits where that is not used."""
    layer = nn.LSTM(3, 5, 2, dropout=0.3, recurrent_dropout=0.3, zoneout=0.2)
    x = torch.randn(6, 4, 3)
    monkeypatch.setattr(autograd, "can_be_written", lambda like: False)
    found = []
    for run in (torch.compile(layer, fullgraph=True, backend="aot_eager"), layer):
        torch.manual_seed(0)
        found.append(run(x)[0])
    assert_bits(*found)


def test_noise_that_the_eager_layer_draws_by_a_kernel_is_traced():
    layer = nn.RNN(3, 200, zoneout=0.3, recurrent_dropout=0.3)
    _, _, states = torch.compile(layer, fullgraph=True, backend="aot_eager")(torch.randn(50, 4, 3), return_states=True)
    assert abs((states[1:] == states[:-1]).float().mean() - 0.3) < 0.02


def test_a_loop_over_a_cell_compiles():
    cell, x = nn.LSTMCell(3, 5), torch.randn(4, 2, 3)

    def loop(x):
        state = None
        for step in x:
            state = cell(step, state)
        return state[0]

    assert_bits(torch.compile(loop, fullgraph=True, backend="aot_eager")(x), loop(x))


def test_an_error_of_ours_comes_through():
    layer = torch.compile(lambda x, n: nn_layer(x, lengths=n)[0], fullgraph=True, backend="aot_eager")
    nn_layer = nn.GRU(3, 5)
    with pytest.raises(recollect.errors.InputError, match="outside the sequence"):
        layer(torch.randn(4, 2, 3), torch.tensor([1, 9]))


def test_the_backward_pass_does_not_run_the_forward_pass_again(monkeypatch):
    ran, forward = [], autograd.forward
    monkeypatch.setattr(autograd, "forward", lambda *a, **k: ran.append(k["save"]) or forward(*a, **k))
    layer, x = nn.LSTM(3, 5, 2, bidirectional=True), torch.randn(4, 2, 3)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    run(x)[0].sum().backward()
    assert ran == [True] * 2  # one call for each layer
    with torch.no_grad():
        run(x)
    assert ran[2:] == [False] * 2, "inference keeps nothing"


def test_a_tape_of_another_layer_is_refused():
    """A kernel gets its address."""
    layer, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
    states, shape = [torch.zeros(1, 2, 5)], (layer.cell.text, compiled._layout(layer._stack(False, torch.float32)))
    given = (x, [], None, None, states, layer._parameters_in_order(), [])
    y, _, *tape = compiled._recurrent(*given, *shape, True)
    tape[-1] = tape[-1][:10]
    with pytest.raises(recollect.errors.InputError, match="does not fit"):
        compiled._recurrent_backward([torch.ones_like(y), None], [0], tape, *given, *shape)


def test_inductor_takes_it_with_what_surrounds_it():
    torch.manual_seed(0)
    head, layer = torch.nn.Linear(5, 2), nn.LSTM(3, 5)

    def model(x):
        return torch.relu(head(torch.tanh(layer(x * 2)[0])))

    x = torch.randn(4, 2, 3, requires_grad=True)
    y = torch.compile(model, fullgraph=True)(x)
    assert_equal(y, model(x), VALUE)
    (mine,), (true,) = (torch.autograd.grad(each.square().sum(), x) for each in (y, model(x)))
    assert_equal(mine, true, GRADIENT)


class Model(torch.nn.Module):
    """What a user would export."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, torch.nn.LazyLinear(2)

    def forward(self, x, lengths=None):
        return self.head(self.layer(x, lengths=lengths)[0])


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("how", ["dense", "lengths"])
@pytest.mark.parametrize("name", ["lstm", "two layers, both ways", "batch first, no bias", "vectors"])
def test_export_with_dynamic_batch_and_time(name, how, strict, tmp_path):
    torch.manual_seed(0)
    model = Model(LAYERS[name]()).eval()
    x, ways = arguments(model.layer, 7, 4)
    model(x)
    batch, steps = Dim("batch"), Dim("steps")
    shapes = {"x": {0: batch, 1: steps} if model.layer.batch_first else {0: steps, 1: batch}}
    keywords = ways[how]
    if keywords:
        shapes["lengths"] = {0: batch}
    program = torch.export.export(model, (x,), keywords, dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for sizes in ((7, 4), (3, 6), (20, 2)):
        x, ways = arguments(model.layer, *sizes)
        assert_bits(again(x, **ways[how]), model(x, **ways[how]))


@pytest.mark.parametrize("how", ["dense", "lengths", "resets", "no valid step", "empty batch"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "learned state"])  # no other operator
def test_opcheck(name, how, monkeypatch):
    """torch's own examination of an operator: schema, aliasing, fake tensors, autograd, dynamic shapes."""
    # It compares all results of two runs, and a kernel does not write every number of its memory.
    room = compiled._room_for_memory
    monkeypatch.setattr(compiled, "_room_for_memory", lambda *arguments: room(*arguments).zero_())
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x, ways = arguments(layer, 4, 0 if how == "empty batch" else 3)
    keywords = ways.get(how, {})
    if how == "no valid step":
        keywords = {"lengths": torch.zeros(3, dtype=torch.int64)}
    stack = layer._stack(True, torch.float32)
    runs = layer.num_layers * layer._directions
    states = [torch.randn(runs, 0 if how == "empty batch" else 3, size, requires_grad=True)
              for size in layer._state_sizes().values()]  # fmt: skip
    shape = (layer.cell.text, compiled._layout(stack))
    given = (
        x.requires_grad_(),
        [],
        keywords.get("lengths"),
        keywords.get("resets"),
        states,
        layer._parameters_in_order(),
        [],
    )
    for tapes in {False, not stack.projected}:
        torch.library.opcheck(compiled._recurrent, (*given, *shape, tapes))
        results = compiled._recurrent(*given, *shape, tapes)
        results, tape = results[: 2 * len(states)], [each.detach() for each in results[2 * len(states) :]]
        assert bool(tape) == tapes
        grads = [torch.randn_like(each) for each in results]
        wanted = list(range(1 + len(states) + len(given[5])))
        torch.library.opcheck(compiled._recurrent_backward, (grads, wanted, tape, *given, *shape))


@pytest.mark.parametrize("tapes", [False, True])
def test_second_derivatives_of_the_operator(tapes):
    layer = nn.GRU(2, 3, dtype=torch.float64)
    states = [torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)]

    def operator(x, state):
        layout = compiled._layout(layer._stack(False, torch.float32))
        arguments = (x, [], None, None, [state], layer._parameters_in_order(), [], layer.cell.text, layout)
        return compiled._recurrent(*arguments, tapes)[:2]

    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, (x, *states))
    assert torch.autograd.gradgradcheck(operator, (x, *states))


def tangent_by_dual(run, x, direction):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(run(torch.autograd.forward_ad.make_dual(x, direction))).tangent


def tangent_by_jvp(run, x, direction):
    return torch.func.jvp(run, (x,), (direction,))[1]


@pytest.mark.parametrize("tangent", [tangent_by_dual, tangent_by_jvp])
@pytest.mark.parametrize("what", ["compiled", "exported"])
def test_a_tangent_is_right_or_refused(what, tangent):
    """Never silently zero, which is what torch makes of an operator that has no forward-mode rule."""
    layer, x = nn.LSTM(3, 5, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    direction = torch.randn_like(x)
    program = torch.export.export(layer, (x,)).module()

    def run(value):
        return (program if what == "exported" else layer)(value)[0]

    expected = tangent_by_jvp(lambda value: layer(value)[0], x, direction)
    try:
        found = tangent(run if what == "exported" else torch.compile(run, backend="aot_eager"), x, direction)
    except recollect.errors.NotYetError as error:
        assert "forward-mode" in str(error)  # noqa: PT017  (either outcome is right)
    else:
        assert_equal(found, expected, GRADIENT)


def test_an_exported_layer_refuses_what_it_cannot_transform():
    layer, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    program = torch.export.export(layer, (x,)).module()
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda value: program(value)[0].sum())(x)
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda value: program(value)[0])(x.unsqueeze(0))
