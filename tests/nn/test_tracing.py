"""torch.compile, torch.fx, TorchScript and ONNX export of models with our modules: a graph, or our words."""

from __future__ import annotations

import io
import warnings

import pytest
import torch

import recollect
from recollect import nn
from recollect.errors import InputError, NotYetError
from tolerances import assert_bits, assert_equal


class Model(torch.nn.Module):
    """A layer, a cell that takes its state, and what stands between them."""

    def __init__(self, name="LSTM", library=nn):
        super().__init__()
        self.inner = torch.nn.ModuleDict(
            {"rnn": getattr(library, name)(3, 5), "cell": getattr(library, name + "Cell")(5, 5)}
        )

    def forward(self, x, state=None):
        y, final = self.inner["rnn"](x, state)
        new = self.inner["cell"](
            y[-1], (final[0][0], final[1][0]) if isinstance(self.inner["rnn"], nn.LSTM) else final[0]
        )
        return y * 2, new


class WithLengths(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.Recurrent(recollect.cells.mgu, 3, 5)

    def forward(self, x, lengths):
        y, h, states = self.rnn(x, lengths=lengths, return_states=True)
        return y + states, h


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in flat(part)]


def assert_all_bits(mine, true):
    for value, expected in zip(flat(mine), flat(true), strict=True):
        assert_bits(value, expected)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_fx_takes_a_module_as_one_node(name):
    torch.manual_seed(0)
    model, x = Model(name), torch.randn(4, 2, 3)
    graph = torch.fx.symbolic_trace(model, concrete_args={"state": None})
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert calls == ["inner.rnn", "inner.cell"]
    assert_all_bits(graph(x, None), model(x))
    assert graph.inner.rnn.weight_hh_l0 is model.inner["rnn"].weight_hh_l0
    flat(graph(x, None))[0].sum().backward()
    assert model.inner["rnn"].weight_hh_l0.grad is not None


def test_fx_hands_states_and_options_on():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 2, 3)
    state = (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    assert_all_bits(torch.fx.symbolic_trace(model)(x, state), model(x, state))
    model, lengths = WithLengths(), torch.tensor([4, 2])
    assert_all_bits(torch.fx.symbolic_trace(model)(x, lengths), model(x, lengths))


def test_fx_of_a_constant_input():
    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.start = nn.GRU(3, 5), torch.zeros(4, 2, 3)

        def forward(self, h):
            return self.rnn(self.start, h)[0]

    model, h = Decoder(), torch.randn(1, 2, 5)
    assert_bits(torch.fx.symbolic_trace(model)(h), model(h))


def test_what_fx_cannot_take_is_refused():
    with pytest.raises(InputError, match=r"cannot be the whole graph; given: LSTM.*Sequential\(module\)"):
        torch.fx.symbolic_trace(nn.LSTM(3, 5))
    model = torch.nn.Sequential(nn.GRU(3, 5))
    model[0].register_forward_hook(lambda module, arguments, results: results[0])
    with pytest.raises(InputError, match="hooks while it traces, and the graph would run them once more"):
        torch.fx.symbolic_trace(model)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return type(module).__module__.startswith("recollect.nn") or super().is_leaf_module(module, name)

    graph, x = torch.fx.GraphModule(model, Tracer().trace(model)), torch.randn(4, 2, 3)
    assert_bits(graph(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript as a whole
@pytest.mark.parametrize("module", [nn.LSTM(3, 5), nn.GRUCell(3, 5), nn.Recurrent(recollect.cells.mgu, 3, 5), Model()])
def test_torchscript_is_refused_in_our_words(module):
    modules = dict(module.named_modules())
    with pytest.raises(InputError, match=r"torch.jit.script cannot compile.*torch.export.export\(model"):
        torch.jit.script(module)
    assert dict(module.named_modules()) == modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", [nn.LSTM(3, 5), nn.Recurrent(recollect.cells.mgu, 3, 5), Model()])
def test_the_older_onnx_exporter_is_refused_in_our_words(module):
    with pytest.raises(NotYetError, match=r"export of recurrent modules to ONNX is not built yet.*state_dict"):
        torch.onnx.export(module, (torch.zeros(4, 2, 3),), io.BytesIO(), dynamo=False)
    assert not torch.onnx.is_in_onnx_export()


def test_the_newer_onnx_exporter_is_refused_in_our_words(monkeypatch):
    """It goes through torch.export; the rest of it needs a package that we do not."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for module, x in ((nn.LSTM(3, 5), torch.zeros(4, 2, 3)), (nn.GRUCell(3, 5), torch.zeros(2, 3))):
        with pytest.raises(NotYetError, match="export of recurrent modules to ONNX is not built yet"):
            torch.export.export(module, (x,), strict=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_converted_makes_one_graph():
    """Parametrised layers and cells of torch.nn, too."""
    torch.manual_seed(0)
    model, x = Model("LSTM", torch.nn), torch.randn(4, 2, 3)
    torch.nn.utils.parametrizations.orthogonal(model.inner["rnn"], "weight_hh_l0")
    recollect.convert(model)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    found = torch.compile(model, fullgraph=True, backend=backend)(x)
    assert len(graphs) == 1
    for value, expected in zip(flat(found), flat(model(x)), strict=True):
        assert_equal(value, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_subclass_of_torchs_layer_breaks_the_graph_and_runs_on_the_kernels():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
    recollect.convert(model, subclass=True)
    x = torch.randn(4, 2, 3)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.compiler.reset()
    with recollect.set_backend("llvm"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_all_bits(torch.compile(model, backend="eager")(x), model(x))
