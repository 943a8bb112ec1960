"""The benchmark runs and refuses: what it measures is for a quiet machine, that it can is for every one."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import MACHINE, subject, trial
from torch import nn

from recollect import cells
from recollect.benchmark import catalogue, features, layers, loops, machine, plan, run, timing
from recollect.benchmark import subject as subjects
from recollect.benchmark.parity import PARITY, difference
from recollect.benchmark.subject import Shape
from recollect.nn import Recurrent

ROOT = Path(__file__).parents[2]
SMALL = Shape(3, 2, 5, 2)
PEERS = ("jax", "onnx", "onnxruntime")


class StillPeak:
    """A machine whose speed is known."""

    gflops = 100.0

    def look(self):
        pass


def measure(*chosen, **options):
    items = plan.whole_grid(chosen, StillPeak.gflops)
    return run.measure(items, dict(MACHINE), StillPeak(), **{"least": 2, "most": 2, **options})


def small(each):
    return replace(each, shapes=(SMALL,))


# One of each kind; the rest only compiles more kernels.
SOME = (
    "LSTM vs torch",
    "loop inference",
    "MGU over",
    "sorted lengths over dense LSTM tr",
    "packed vs",
    "resets",
)


@pytest.mark.parametrize("names", [SOME, pytest.param(("",), marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_subject_measures(names):
    chosen = [small(each) for name in names for each in catalogue.subjects(only=name) if not each.needs]
    found = measure(*chosen)
    assert [row.title for row in found.rows] == [each.title for each in chosen]
    for row in found.rows:
        assert row.refused is None, row
        assert row.pairs == 2
        assert min(row.ratio, row.low, row.seconds, row.gflops) > 0


# In a process of its own: JAX would warn of every later fork in this one.
OTHERS = """
import sys; sys.path.insert(0, "tests/benchmark")
from dataclasses import replace
from recollect.benchmark import catalogue, plan, run
from recollect.benchmark.subject import Shape
from test_run import SMALL, StillPeak, measure
chosen = [replace(each, shapes=(SMALL,)) for each in catalogue.subjects() if each.needs]
found = measure(*chosen)
print([row.refused for row in found.rows])
import jax
print(jax.config.jax_enable_x64)
"""


@pytest.mark.skipif(not all(map(importlib.util.find_spec, PEERS)), reason="needs recollect[bench]")
def test_jax_and_onnx_runtime_compute_the_same():
    command = [sys.executable, "-c", OTHERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["[None, None, None]", "False"], done.stderr


def test_a_loop_is_the_cell():
    for cell in (cells.lstm, *layers.CELLS):
        layer = Recurrent(cell, 3, 4)
        x = torch.randn(5, 2, 3)
        y, state = layer(x)
        outputs, states = loops.Loop(layer, loops.STEPS[cell.name])(x)
        torch.testing.assert_close(outputs, y)
        for found, expected in zip(states, state if isinstance(state, tuple) else (state,), strict=True):
            torch.testing.assert_close(found, expected)


class TestRefusal:
    @pytest.mark.parametrize("wrong", [2 * PARITY, math.nan, math.inf])
    def test_no_speed_where_results_differ(self, wrong):
        def never():
            pytest.fail("was timed")

        (row,) = measure(subject(lambda _: trial(wrong, never, never))).rows
        assert "results differ" in row.refused
        assert (row.ratio, row.seconds, row.pairs) == (0, 0, 0)

    def test_other_weights_are_noticed(self):
        ours, peer = nn.LSTM(2, 3), nn.LSTM(2, 3)
        x, grad = torch.randn(4, 2, 2, requires_grad=True), torch.randn(4, 2, 3)
        assert layers.module_trial(ours, peer, x, grad, "training", (1.0, 1.0)).difference > PARITY

    def test_nan_is_a_difference(self):
        good, bad = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
        for found, expected in ([good, bad], [good, good]), ([good, good], [good, bad]):
            assert math.isnan(difference(found, expected))


class TestPeersThatAreNotThere:
    def test_are_skipped_by_name(self, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            subjects.importlib.util, "find_spec", lambda name: None if name in ("jax", "jaxlib") else find(name)
        )
        there, skipped = run.installed(catalogue.subjects())
        assert "LSTM vs JAX" not in {each.title for each in there}
        assert skipped["LSTM vs JAX"] == "jax and jaxlib not installed (pip install 'recollect[bench]')"
        assert {each.title for each in there} | {*skipped} == {each.title for each in catalogue.subjects()}

    def test_one_that_cannot_be_loaded_does_not_end_the_run(self):
        def broken(_shape):
            raise ImportError("libpeer.so is missing")

        found = measure(subject(broken), replace(subject(lambda _: trial()), name="GRU"))
        assert found.skipped == {"LSTM vs a peer": "a peer cannot be imported (libpeer.so is missing)"}
        assert [row.title for row in found.rows] == ["GRU vs a peer"]


class TestTime:
    def test_the_plan_takes_the_first_shape_of_all_then_the_next_while_they_fit(self):
        chosen = catalogue.subjects()
        sizes = []
        for seconds in (1, 100, 1000, 1e6):
            items = plan.fitting(chosen, 100.0, seconds)
            for each in chosen:
                own = [item.shape for item in items if item.subject is each]
                assert own[0] == each.shapes[0]
                assert own == [shape for shape in each.shapes if shape in own]
            sizes.append(len(items))
        assert sizes == sorted(sizes)
        assert sizes[0] == len(chosen)
        assert sizes[-1] == len(plan.whole_grid(chosen, 100.0))

    def test_the_plan_stays_within_the_time(self):
        items = plan.fitting(catalogue.subjects(), 100.0, 300.0)
        assert sum(item.seconds for item in items) < 300.0

    def test_pairs_end_with_their_share_but_not_before_the_least(self):
        past = time.perf_counter() - 1
        pair = timing.paired(lambda: None, lambda: None, least=3, most=9, until=past)
        assert len(pair.ours) == len(pair.peer) == 3

    def test_runs_in_turn(self):
        calls = []

        def slow(name):
            return lambda: (calls.append(name), time.sleep(0.003))

        timing.paired(slow("a"), slow("b"), least=3, most=3)
        assert calls == ["a", "b"] * (timing.WARM_UP + 3)

    def test_a_short_call_is_repeated_within_a_sample(self):
        calls = []
        timing.paired(lambda: calls.append(0), lambda: None, least=2, most=2)
        assert len(calls) > 100

    def test_beside_a_short_call_a_long_one_follows_its_like_too(self):
        """Or one would be measured with its code in the caches, and the other without."""
        calls = []
        timing.paired(lambda: calls.append("a"), lambda: (calls.append("b"), time.sleep(0.005)), least=1, most=1)
        assert calls[-3:] == ["a", "b", "b"]

    def test_what_the_deadline_leaves_no_room_for_is_named(self):
        late = [replace(subject(lambda _: trial()), name=name) for name in ("GRU", "RNN")]
        found = measure(*late, deadline=time.perf_counter() - 1)
        assert [row.title for row in found.rows] == ["GRU vs a peer"]  # one figure is better than none
        assert found.left_out == ["RNN vs a peer inference (1, 2, 3, 4)"]
        slow = subject(lambda _: trial(ours=lambda: time.sleep(0.05)))
        found = measure(late[0], slow, deadline=time.perf_counter() + 0.5, least=20, most=20)
        assert found.left_out == ["LSTM vs a peer inference (1, 2, 3, 4)"]


def test_every_shape_of_the_full_grid_is_there():
    assert len(layers.SHAPES) == 10
    assert [shape.steps for shape in features.unequal_lengths(True)[0].shapes] == [100, 1000, 4000]


def test_the_peak_is_the_best_that_was_seen():
    peak = machine.Peak(1)
    before = peak.gflops
    peak.look(10)
    assert peak.gflops >= before > 0


def test_the_record_is_made_by_the_same_code():
    command = [sys.executable, "-m", "benchmarks", "--only", "zoneout over plain LSTM inference", "--pairs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("×") == 1
