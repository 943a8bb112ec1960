"""ONNX's own cases of its operators RNN, LSTM and GRU, with what ONNX expects of them.

The cases are those of the installed onnx package. Most have equal weights in all gates, so the classes that ONNX
computes its expectations with are asked about random weights too: only these tell one gate from another.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

import recollect
from recollect import cells, nn
from tolerances import assert_equal

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")  # positions, for all three operators
OUTPUTS = ("Y", "Y_h", "Y_c")
# ONNX's order of the gates and of the peepholes; ours, in ONNX's letters: an LSTM's i f g o is ifco.
GATES = {"RNN": "i", "LSTM": "iofc", "GRU": "zrh"}
OUR_GATES = {"RNN": "i", "LSTM": "ifco", "GRU": "rzh"}
PEEPHOLES = "iof"

# How each case is run. "layer": recollect.nn.RNN, LSTM or GRU. "peepholes": our peephole_lstm. "two steps":
# gru_reset_before, below. A case of one step from h = 0 without a recurrent bias is the same in both kinds of GRU,
# since R multiplies 0 whether r comes before or after it; test_cases_that_both_kinds_of_gru_share asserts that.
ROUTES = {
    "test_simple_rnn_defaults": ["layer"],
    "test_simple_rnn_with_initial_bias": ["layer"],
    "test_rnn_seq_length": ["layer"],
    "test_simple_rnn_batchwise": ["layer"],
    "test_simple_rnn_reverse": ["layer"],
    "test_simple_rnn_bidirectional": ["layer"],
    "test_lstm_defaults": ["layer", "peepholes"],
    "test_lstm_with_initial_bias": ["layer", "peepholes"],
    "test_lstm_with_peepholes": ["peepholes"],
    "test_lstm_batchwise": ["layer", "peepholes"],
    "test_lstm_reverse": ["layer", "peepholes"],
    "test_lstm_bidirectional": ["layer", "peepholes"],
    "test_gru_defaults": ["layer", "two steps"],
    "test_gru_with_initial_bias": ["layer", "two steps"],
    "test_gru_batchwise": ["layer", "two steps"],
    "test_gru_seq_length": ["two steps"],
    "test_gru_reverse": ["two steps"],
    "test_gru_bidirectional": ["two steps"],
}
# Case -> why it cannot be run. A case of a later onnx belongs here or above.
SKIPPED: dict[str, str] = {}


@recollect.cell(gates="r z n first", states="s h z")
def gru_reset_before(inp, rec, prev):
    """ONNX's GRU with linear_before_reset=0, whose candidate sees R (r * h): two products, so two steps of ours.

    The first puts out s = r * h, which W_hh then multiplies in the second. Gate ``first`` is 1 in the first, else 0.
    """
    first = inp.first > 0.5
    n = torch.tanh(inp.n + rec.n)
    h = torch.where(first, prev.h, (1 - prev.z) * n + prev.z * prev.h)
    s = torch.where(first, torch.sigmoid(inp.r + rec.r) * prev.h, h)
    return s, h, torch.where(first, torch.sigmoid(inp.z + rec.z), prev.z)


def reordered(blocks: torch.Tensor, theirs: str, ours: str) -> list[torch.Tensor]:
    """The blocks of ONNX's order ``theirs``, in the order ``ours``."""
    found = dict(zip(theirs, blocks.chunk(len(theirs)), strict=True))
    return [found[each] for each in ours]


def parameters(op: str, given: dict[str, torch.Tensor], place: int, hidden: int) -> dict[str, list[torch.Tensor]]:
    """The parameters of direction ``place`` of a node under our names, each a list of [H, ...] in our order."""
    both = given["B"][place] if "B" in given else torch.zeros(2 * len(GATES[op]) * hidden)
    blocks = {"weight_ih": given["W"][place], "weight_hh": given["R"][place]}
    blocks |= dict(zip(("bias_ih", "bias_hh"), both.chunk(2), strict=True))  # B = [Wb, Rb]
    found = {name: reordered(value, GATES[op], OUR_GATES[op]) for name, value in blocks.items()}
    peepholes = given["P"][place] if "P" in given else torch.zeros(3 * hidden)
    vectors = zip(PEEPHOLES, peepholes.chunk(3), strict=True)
    return found | {f"vector_p_{name}": [value] for name, value in vectors}


def with_gate_first(found: dict[str, list[torch.Tensor]], side: int) -> dict[str, list[torch.Tensor]]:
    """The parameters of `gru_reset_before`: two input columns more, and a gate that copies its direction's column."""
    found = found | {"weight_ih": [torch.nn.functional.pad(each, (0, 2)) for each in found["weight_ih"]]}
    found = {name: [*parts, torch.zeros_like(parts[0])] for name, parts in found.items()}
    found["weight_ih"][-1][:, side - 2] = 1.0
    return found


def run_node(op: str, attributes: dict[str, Any], inputs: dict[str, np.ndarray], route: str) -> dict[str, torch.Tensor]:
    """Run an ONNX node on our layers.

    Args:
        op: "RNN", "LSTM" or "GRU".
        attributes: of the node; those that are not known here (clip, activations, ...) are refused.
        inputs: X [T, B, I], W [D, G * H, I], R [D, G * H, H], B [D, 2 * G * H] = [Wb, Rb], sequence_lens [B],
            initial_h and initial_c [D, B, H], P [D, 3 * H]; with layout=1 B comes first in X and the states.
        route: see ``ROUTES``.

    Returns:
        Y [T, D, B, H], Y_h and Y_c [D, B, H]; with layout=1 [B, T, D, H] and [B, D, H].
    """
    unknown = set(attributes) - {"hidden_size", "direction", "layout", "linear_before_reset"}
    assert not unknown, f"how to express {sorted(unknown)} is not decided"
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if attributes.get("layout", 0) == 1:  # the rest of this function has time first
        given |= {name: given[name].transpose(0, 1) for name in ("X", "initial_h", "initial_c") if name in given}
    x, hidden, two_steps = given["X"], given["R"].shape[2], route == "two steps"
    if two_steps:  # each row twice, with a column for each direction that is 1 where its first step is
        even = (torch.arange(2 * len(x)) % 2 == 0).float()
        phases = torch.stack([even, 1 - even], 1).unsqueeze(1).expand(-1, x.shape[1], -1)
        x = torch.cat([x.repeat_interleave(2, 0), phases], 2)

    # A reverse node is the second direction of a bidirectional layer.
    sides = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[attributes.get("direction", b"forward").decode()]
    cell = {"peepholes": cells.peephole_lstm, "two steps": gru_reset_before}.get(route)
    sizes, options = (x.shape[2], hidden), {"bidirectional": 1 in sides}
    layer = nn.Recurrent(cell, *sizes, **options) if cell else getattr(nn, op)(*sizes, **options)
    for place, side in enumerate(sides):
        found = parameters(op, given, place, hidden)
        for name, parts in (with_gate_first(found, side) if two_steps else found).items():
            if name.startswith("vector") and route != "peepholes":
                assert "P" not in given
                continue
            getattr(layer, f"{name}_{('l0', 'l0_reverse')[side]}").data.copy_(torch.cat(parts))

    states = []
    for name in ("initial_h", "initial_c") if op == "LSTM" else ("initial_h",):
        state = torch.zeros(1 + (1 in sides), x.shape[1], hidden)
        if name in given:
            state[sides] = given[name]
        states.append(state)
    if two_steps:
        states = [states[0], states[0], torch.zeros_like(states[0])]  # s, h, z
    lengths = given["sequence_lens"].long() * (1 + two_steps) if "sequence_lens" in given else None

    with torch.no_grad():
        y, final = layer(x, states[0] if len(states) == 1 else tuple(states), lengths=lengths)
    y = y.unflatten(2, (-1, hidden)).transpose(1, 2)  # [T, D, B, H]
    if two_steps:  # what a direction's second step puts out: the later of two when it goes forward, else the earlier
        y = torch.stack([y[1 - side :: 2, side] for side in range(y.shape[1])], 1)
    found = [y[:, sides], *[each[sides] for each in ([final] if isinstance(final, torch.Tensor) else final)]]
    if attributes.get("layout", 0) == 1:
        found = [found[0].permute(2, 0, 1, 3), *[each.transpose(0, 1) for each in found[1:]]]
    return dict(zip(OUTPUTS, found, strict=False))


# ---------------------------------------------------------------- the cases


@pytest.fixture(scope="module")
def onnx_cases():
    """Name -> case, of all cases whose operator is one of ours."""
    from onnx.backend.test.case import node

    before = np.random.get_state()  # onnx seeds numpy's own generator
    for op in GATES:  # collect_testcases() would make the cases of all operators, for seconds; see the slow test
        importlib.import_module(f"onnx.backend.test.case.node.{op.lower()}")
    np.random.set_state(before)
    return {case.name: case for case in node._NodeTestCases if case.model.graph.node[0].op_type in GATES}


def parts_of(case):
    """The operator, attributes, inputs and expected outputs of a case."""
    from onnx.helper import get_attribute_value

    (operator,), ((values, expected),) = case.model.graph.node, case.data_sets
    attributes = {each.name: get_attribute_value(each) for each in operator.attribute}
    inputs = dict(zip([n for n, there in zip(INPUTS, operator.input, strict=False) if there], values, strict=True))
    outputs = dict(zip([n for n, there in zip(OUTPUTS, operator.output, strict=False) if there], expected, strict=True))
    return operator.op_type, attributes, inputs, outputs


def test_every_case_is_decided(onnx_cases):
    """A case that a later onnx brings fails here until someone decides how it is run, or why it cannot be."""
    assert onnx_cases
    assert sorted(onnx_cases) == sorted([*ROUTES, *SKIPPED])
    assert {parts_of(case)[0] for case in onnx_cases.values()} == set(GATES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # cases of other operators overflow on purpose
def test_no_other_module_of_onnx_has_cases():
    """What ``onnx_cases`` finds in three modules is all that onnx collects for these operators."""
    from onnx.backend.test.case import node

    found = {case.name for case in node.collect_testcases() if case.model.graph.node[0].op_type in GATES}
    assert found == {*ROUTES, *SKIPPED}


@pytest.mark.parametrize(
    ("name", "route"),
    [(name, route) for name, routes in (ROUTES | {each: [""] for each in SKIPPED}).items() for route in routes],
)
def test_case(name, route, onnx_cases):
    """The outputs that ONNX expects of a node."""
    if name in SKIPPED:
        pytest.skip(SKIPPED[name])
    op, attributes, inputs, expected = parts_of(onnx_cases[name])
    found = run_node(op, attributes, inputs, route)
    assert expected
    for output, value in expected.items():
        assert_equal(found[output], torch.from_numpy(value), what=output)


@pytest.mark.parametrize("name", [name for name, routes in ROUTES.items() if routes == ["layer", "two steps"]])
def test_cases_that_both_kinds_of_gru_share(name, onnx_cases):
    """One step, h = 0 and no recurrent bias of the candidate: r * (h R + 0) and (r * h) R are both 0."""
    op, attributes, inputs, _ = parts_of(onnx_cases[name])
    assert op == "GRU"
    assert inputs["X"].shape[attributes.get("layout", 0)] == 1
    assert "initial_h" not in inputs
    assert not inputs.get("B", np.zeros(1))[..., -inputs["R"].shape[2] :].any()


# ---------------------------------------------------------------- random weights

T, B, I, H = 4, 3, 2, 5  # noqa: E741  (the field's own letters)
NODES = {
    "RNN": ("RNN", "layer", {}),
    "LSTM": ("LSTM", "layer", {}),
    "LSTM with peepholes": ("LSTM", "peepholes", {}),
    "GRU, linear_before_reset=1": ("GRU", "layer", {"linear_before_reset": 1}),
    "GRU, linear_before_reset=0": ("GRU", "two steps", {"linear_before_reset": 0}),
}


def node_inputs(op, route, directions, layout):
    """Random inputs of a node, all that are optional among them but sequence_lens."""
    rng, gates = np.random.default_rng(7), len(GATES[op]) * H
    state = (B, directions, H) if layout else (directions, B, H)
    shapes = {
        "X": (B, T, I) if layout else (T, B, I),
        "W": (directions, gates, I),
        "R": (directions, gates, H),
        "B": (directions, 2 * gates),
        "initial_h": state,
        **({"initial_c": state} if op == "LSTM" else {}),
        **({"P": (directions, 3 * H)} if route == "peepholes" else {}),
    }
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def onnx_outputs(op, attributes, inputs):
    """What the class computes that onnx makes the expectations of its cases with."""
    module = importlib.import_module(f"onnx.backend.test.case.node.{op.lower()}")
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    return dict(zip(OUTPUTS, getattr(module, f"{op}Helper")(**inputs, **plain).step(), strict=False))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("node", NODES)
def test_random_weights(node, direction, layout, onnx_cases):
    """Gate and peephole order, biases, initial states, directions and layouts, each with weights of its own."""
    op, route, more = NODES[node]
    attributes = {"direction": direction.encode(), "layout": layout, **more}
    inputs = node_inputs(op, route, 2 if direction == "bidirectional" else 1, layout)
    found = run_node(op, attributes, inputs, route)
    expected = onnx_outputs(op, attributes, inputs)
    assert len(expected) == (3 if op == "LSTM" else 2)
    for output, value in expected.items():
        assert_equal(found[output], torch.from_numpy(np.ascontiguousarray(value)), what=output)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("node", NODES)
def test_sequence_lens(node, direction, onnx_cases):
    """ "sequence_lens: Optional tensor specifying lengths of the sequences in a batch": as if each row were alone."""
    op, route, more = NODES[node]
    attributes = {"direction": direction.encode(), **more}
    inputs = node_inputs(op, route, 2 if direction == "bidirectional" else 1, 0)
    lengths = np.array([2, 4, 1], dtype=np.int32)
    found = run_node(op, attributes, inputs | {"sequence_lens": lengths}, route)
    for row, length in enumerate(lengths):
        alone = inputs | {"X": inputs["X"][:length, row : row + 1]}
        alone |= {name: inputs[name][:, row : row + 1] for name in ("initial_h", "initial_c") if name in inputs}
        for output, value in onnx_outputs(op, attributes, alone).items():
            mine = found[output][:length, :, row : row + 1] if output == "Y" else found[output][:, row : row + 1]
            assert_equal(mine, torch.from_numpy(np.ascontiguousarray(value)), what=output)
        assert not found["Y"][length:, :, row].any()
