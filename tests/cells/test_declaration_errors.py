"""Each way to get a declaration wrong: one error of ours that quotes the author's own line."""

from __future__ import annotations

import functools
import inspect
import sys

import pytest
import torch
import torch.nn.functional as F

import recollect
from recollect.errors import CellError, RecollectError

WEIGHT = torch.randn(5, 5)
UNIT = torch.ones(5)
LEARNED = torch.nn.Parameter(torch.tensor(2.0))


def declare(step, gates="i f", states="h c", vectors=""):
    return recollect.cell(gates=gates, states=states, vectors=vectors)(step)


# The steps: each is wrong in the line marked with "# <-".


def unused_gate(inp, rec, prev):
    c = prev.c + torch.tanh(inp.i + rec.i)
    return torch.tanh(c), c


def state_not_returned(inp, rec, prev):
    return torch.sigmoid(inp.i + rec.i) + inp.f  # <-


def three_states_returned(inp, rec, prev):
    i = torch.sigmoid(inp.i + rec.i) + inp.f
    return i, i, prev.c  # <-


def returns_nothing(inp, rec, prev):
    torch.tanh(inp.i + rec.f)  # <-


def returns_one_per_unit(inp, rec, prev, vec):
    c = inp.i + rec.f + prev.c
    return vec.p * 2, c  # <-


def returns_a_number(inp, rec, prev):
    return inp.i + rec.f, 0.0  # <-


def returns_a_scalar(inp, rec, prev):
    return inp.i + rec.f, torch.tensor(1.0)  # <-


def returns_a_condition(inp, rec, prev):
    return inp.i + rec.f, prev.c > 0  # <-


def returns_whole_numbers(inp, rec, prev):
    return inp.i + rec.f, torch.where(prev.c > 0, 1, 0)  # <-


def python_if(inp, rec, prev):
    c = prev.c + inp.i
    if c > 0:  # <-
        c = c + rec.f
    return torch.tanh(c), c


def python_and(inp, rec, prev):
    return inp.i + rec.f, torch.where((inp.i > 0) and (rec.i > 0), inp.i, prev.c)  # <-


def python_float(inp, rec, prev):
    return inp.i + rec.f, prev.c * float(inp.f)  # <-


def python_item(inp, rec, prev):
    return inp.i + rec.f, prev.c * inp.f.item()  # <-


def unknown_operation(inp, rec, prev):
    c = torch.erfinv(inp.i + rec.f)  # <-
    return c, prev.c


def product(inp, rec, prev):
    r = torch.sigmoid(inp.i + rec.i)
    return torch.tanh(inp.f + (r * prev.h) @ WEIGHT), prev.c  # <-


def product_transposed(inp, rec, prev):
    return torch.tanh(inp.f + inp.i + prev.h @ WEIGHT.T), prev.c  # <-


def layer_norm(inp, rec, prev):
    return F.layer_norm(inp.i + rec.f, (5,)), prev.c  # <-


def softmax(inp, rec, prev):
    return torch.softmax(inp.i + rec.f, dim=-1), prev.c  # <-


def mean(inp, rec, prev):
    return inp.i - (inp.f + rec.f).mean(-1, keepdim=True), prev.c  # <-


def norm(inp, rec, prev):
    return F.normalize(inp.i + rec.f), prev.c  # <-


def any_unit(inp, rec, prev):
    c = prev.c + inp.i + rec.f
    return c * torch.any(c > 0), c  # <-


def in_place(inp, rec, prev):
    c = prev.c + inp.i
    c *= torch.sigmoid(rec.f)  # <-
    return c, c


def in_place_method(inp, rec, prev):
    c = (prev.c + inp.i + rec.f).clamp_(-1, 1)  # <-
    return c, c


def in_place_into(inp, rec, prev):
    c = prev.c + inp.i + rec.f
    torch.tanh(c, out=c)  # <-
    return c, c


def foreign_tensor(inp, rec, prev):
    return UNIT * (inp.i + rec.f), prev.c  # <-


def foreign_parameter(inp, rec, prev):
    return LEARNED * (inp.i + rec.f), prev.c  # <-


def fresh_tensor(inp, rec, prev):
    return torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) * (inp.i + rec.f), prev.c  # <-


def random(inp, rec, prev):
    return (inp.i + rec.f) * torch.rand(5), prev.c  # <-


def unknown_gate(inp, rec, prev):
    return inp.i + rec.ff, prev.c  # <-


def unknown_state(inp, rec, prev):
    return inp.i + rec.f, prev.cc  # <-


def unknown_vector(inp, rec, prev, vec):
    return inp.i + rec.f + vec.pf, prev.c  # <-


def far_from_any_name(inp, rec, prev):
    return inp.i + rec.f + inp.forget_gate, prev.c  # <-


def not_a_number(inp, rec, prev):
    return inp.i + rec.f, torch.where(prev.c > 0, prev.c, float("nan"))  # <-


def fails(inp, rec, prev):
    scale = [1.0, 2.0][2]  # <-
    return inp.i * scale, rec.f


def helper(x):
    return torch.erfinv(x)


def wrong_in_a_helper(inp, rec, prev):
    return helper(inp.i + rec.f), prev.c  # <-


def cast(inp, rec, prev):
    return (inp.i + rec.f).int() * prev.h, prev.c  # <-


# step -> what the message says, besides the line.
SAID = {
    state_not_returned: ["returns 1 value(s), but declares 2 state(s)", "h, c"],
    three_states_returned: ["returns 3 value(s), but declares 2 state(s)"],
    returns_nothing: ["returns 1 value(s)"],
    returns_one_per_unit: ["state 'h' in the wrong shape", "given: [H]", "[B, H]"],
    returns_a_number: ["state 'c' in the wrong shape", "given: float"],
    returns_a_scalar: ["state 'c' in the wrong shape", "one number"],
    returns_a_condition: ["state 'c' as bool", "torch.where(condition, 1.0, 0.0)"],
    returns_whole_numbers: ["state 'c' as int64"],
    python_if: ["turns a tensor into a Python value", "torch.where(condition, a, b)"],
    python_and: ["turns a tensor into a Python value"],
    python_float: ["turns a tensor into a Python value"],
    python_item: ["turns a tensor into a Python value"],
    unknown_operation: [
        "'erfinv'", "\n  arithmetic: abs, add, ", "\n  activations: celu, ", "write it with the operations listed",
    ],
    product: ["'mm'", "`r * rec.n`"],
    product_transposed: ["`r * rec.n`"],
    layer_norm: ["'native_layer_norm'", "not built yet", "torch.nn.LayerNorm on the input of the layer"],
    softmax: ["'_softmax'", "across units"],
    mean: ["'mean'", "across units"],
    norm: ["across units"],
    any_unit: ["across units"],
    in_place: ["changes a tensor in place", "use mul without the underscore", "`c = f * c`"],
    in_place_method: ["changes a tensor in place", "use clamp without the underscore"],
    in_place_into: ["changes a tensor in place"],
    foreign_tensor: ["a tensor that is not one of its arguments", "shape (5,)", 'vectors="name"'],
    foreign_parameter: ["a tensor that is not one of its arguments", 'vectors="name"'],
    fresh_tensor: ["a tensor that is not one of its arguments"],
    random: ["'rand'"],
    unknown_gate: ["reads rec.ff, which it does not declare", "did you mean rec.f?"],
    unknown_state: ["reads prev.cc", "did you mean prev.c?", "prev.h, prev.c"],
    unknown_vector: ["reads vec.pf", "did you mean vec.p?"],
    far_from_any_name: ["reads inp.forget_gate", "inp.i, inp.f", "declare the name"],
    not_a_number: ["a constant is not a number", "nan"],
    fails: ["failed", "list index out of range"],
    wrong_in_a_helper: ["'erfinv'"],
    cast: ["a cast to another kind of number"],
}  # fmt: skip
VECTORS = {returns_one_per_unit: "p", unknown_vector: "p"}


def marked_line(step):
    """The line number and text of the marked line of a step."""
    lines, start = inspect.getsourcelines(step)
    (offset,) = [i for i, line in enumerate(lines) if "# <-" in line]
    return start + offset, lines[offset].strip()


@pytest.mark.parametrize("step", SAID, ids=lambda step: step.__name__)
def test_the_step_is_wrong(step):
    with pytest.raises(CellError) as caught:
        declare(step, vectors=VECTORS.get(step, ""))
    number, line = marked_line(step)
    message = str(caught.value)
    assert f"line {number}: `{line}`" in message
    assert repr(step.__name__) in message
    for said in SAID[step]:
        assert said in message
    assert isinstance(caught.value, RecollectError)


def test_a_gate_that_is_never_used():
    with pytest.raises(CellError, match=r"declares gate 'f' and never uses it; given: gates='i f'") as caught:
        declare(unused_gate)
    assert "leave 'f' out" in str(caught.value)


def test_a_vector_that_is_never_used():
    def step(inp, rec, prev, vec):
        return inp.i + rec.f, prev.c + vec.p

    with pytest.raises(CellError, match="declares vector 'q' and never uses it"):
        declare(step, vectors="p q")


def test_a_gate_whose_result_is_thrown_away():
    def step(inp, rec, prev):
        torch.sigmoid(inp.f + rec.f)
        return inp.i + rec.i, prev.c

    with pytest.raises(CellError, match="gate 'f' and never uses it"):
        declare(step)


def fine(inp, rec, prev):
    return inp.i + rec.f, prev.c


class TestNames:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"gates": "i f i"}, "names 'i' twice"),
            ({"states": "h c h"}, "names 'h' twice"),
            ({"gates": "i f 2"}, "'2' cannot be a name"),
            ({"gates": "i,f"}, "'i,f' cannot be a name"),
            ({"gates": "i f class"}, "'class' cannot be a name"),
            ({"gates": "i f _g"}, "'_g' cannot be a name"),
            ({"gates": ""}, "has no gates"),
            ({"states": " "}, "has no states"),
            ({"gates": ["i", "f"]}, "gates must be names in one string"),
            ({"states": None}, "states must be names in one string"),
            ({"vectors": 3}, "vectors must be names in one string"),
        ],
        ids=str,
    )
    def test_invalid(self, changes, said):
        with pytest.raises(CellError, match="cell 'fine'") as caught:
            declare(fine, **changes)
        assert said in str(caught.value)

    def test_the_same_name_for_a_gate_and_a_state_is_fine(self):
        @recollect.cell(gates="h", states="h")
        def step(inp, rec, prev):
            return inp.h + rec.h + prev.h

        assert step.gates == step.states == ("h",)


class TestArguments:
    def test_too_few(self):
        def step(inp, rec):
            return inp.i, rec.f

        with pytest.raises(CellError, match=r"given: def step\(inp, rec\); expected: def step\(inp, rec, prev\)"):
            declare(step)

    def test_vectors_need_a_fourth(self):
        with pytest.raises(CellError, match=r"expected: def fine\(inp, rec, prev, vec\)"):
            declare(fine, vectors="p")

    def test_no_vectors_no_fourth(self):
        def step(inp, rec, prev, vec):
            return inp.i, rec.f

        with pytest.raises(CellError, match=r"given: def step\(inp, rec, prev, vec\)"):
            declare(step)

    def test_their_names_are_the_authors(self):
        def step(x, h, state):
            return x.i + h.f, state.c

        assert declare(step).graph.key == declare(fine).graph.key

    @pytest.mark.parametrize(
        "thing", [3, "lstm", None, torch.nn.LSTM, functools.partial(fine), torch.tanh, recollect.cells.lstm]
    )
    def test_not_a_function(self, thing):
        with pytest.raises(CellError, match="decorates a function"):
            declare(thing)

    def test_a_lambda_has_no_name(self):
        with pytest.raises(CellError, match="write the step with def"):
            declare(lambda inp, rec, prev: (inp.i + rec.f, prev.c))

    def test_without_parentheses_or_names(self):
        with pytest.raises(TypeError):
            recollect.cell(fine)


class TestWhatIsFine:
    def test_numbers_closed_over_and_made_in_the_step(self):
        scale = 0.5

        def step(inp, rec, prev):
            return scale * inp.i + rec.f * torch.tensor(2.0), torch.where(prev.c > 0, prev.c, 0.0) + 1

        graph = declare(step).graph
        assert {node.attr for node in graph.nodes if node.op == "const"} == {0.5, 2.0, 0.0, 1.0}

    def test_a_loop_of_python_and_a_helper(self):
        def step(inp, rec, prev):
            c = prev.c
            for _ in range(3):
                c = smooth(c)
            return inp.i + rec.f, c

        def smooth(x):
            return torch.tanh(x)

        assert [node.op for node in declare(step).graph.nodes].count("tanh") == 3

    def test_a_list_of_states(self):
        def step(inp, rec, prev):
            return [inp.i + rec.f, prev.c]

        assert declare(step).graph.key == declare(fine).graph.key

    def test_a_profiler_that_was_there_is_there_after(self):
        def profiler(frame, event, arg):
            return None

        before = sys.getprofile()
        sys.setprofile(profiler)
        try:
            with pytest.raises(CellError):
                declare(python_if)
            assert sys.getprofile() is profiler
        finally:
            sys.setprofile(before)

    def test_names_are_what_the_author_called_things(self):
        named = {name for name, _ in recollect.cells.lstm.graph.names}
        assert named == {"i", "f", "g", "o", "c", "h"}
