"""A graph in waves computes what it computes in one piece, and no wave waits inside itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from random_graphs import LEAVES, graphs
from recollect import cells
from recollect.engine.plan import make_plan
from recollect.engine.waves import cut
from recollect.graph import ops
from recollect.graph.trace import TorchTarget

CELLS = [getattr(cells, name) for name in cells.__all__]


def evaluated(waves, leaves):
    """The results of all waves, each given what the ones before it left."""
    found = {}
    for wave in waves.graphs:
        found |= wave.evaluate(leaves | found, TorchTarget())
    return {name: value for name, value in found.items() if not name.startswith("mid.")}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(graphs())
def test_waves_compute_what_the_graph_does(graph):
    generator = torch.Generator().manual_seed(0)
    leaves = {name: torch.rand(7, generator=generator, dtype=torch.float64) for name in LEAVES}
    waves, expected = cut(graph), graph.evaluate(leaves, TorchTarget())
    found = evaluated(waves, leaves)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(value), rtol=0, atol=0, equal_nan=True, check_dtype=False
        )


@settings(max_examples=60, derandomize=True, deadline=None)
@given(graphs())
def test_no_costly_operation_waits_for_another_of_its_wave(graph):
    for wave in cut(graph).graphs:
        waits: list[int] = []
        for node in wave.nodes:
            before = max((waits[arg] for arg in node.args), default=0)
            waits.append(before + (node.op in ops.ROWS and ops.ROWS[node.op].costly))
        assert all(count <= 1 for count in waits)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_mid_is_left_once_before_it_is_read(cell):
    waves = make_plan(cell.graph, cell.gates, cell.states, cell.vectors).waves
    left: list[str] = []
    for wave in waves.graphs:
        assert {name for name in wave.leaves if name.startswith("mid.")} <= set(left)
        left += [name for name, _ in wave.outputs if name.startswith("mid.")]
    assert sorted(left) == sorted(f"mid.{place}" for place in range(waves.mids))


def test_the_lstm_has_two_waves():
    lstm = cells.lstm
    waves = make_plan(lstm.graph, lstm.gates, lstm.states, lstm.vectors).waves
    assert [[name for name, _ in wave.outputs if name.startswith("next.")] for wave in waves.graphs] == [
        ["next.c"],
        ["next.h"],
    ]
