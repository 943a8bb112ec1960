"""Ratios, means, marks, files and the chart, on figures that nobody measured."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from made_up import MACHINE, everything, row, subject, trial
from rich.console import Console

from recollect.benchmark import chart, results, tables, terminal
from recollect.benchmark.results import Results
from recollect.benchmark.subject import Shape
from recollect.benchmark.timing import Pair, middle_half
from recollect.cli.terminal import Terminal
from recollect.errors import DataError


def text_of(found: Results) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        terminal.show(found, console)
    return capture.get()


def test_tables_fit_the_narrowest_usual_terminal():
    console = Console(width=80)
    with console.capture() as capture:
        terminal.show(everything(), console)
    assert "…" not in capture.get()
    assert capture.get().count("2.00×") >= len(everything().rows)


class TestRatios:
    def test_are_medians_of_pairs_in_turn_not_ratios_of_medians(self):
        pair = Pair(ours=[1.0, 2.0, 4.0, 1.0, 1.0], peer=[3.0, 2.0, 4.0, 2.0, 2.0])
        found = results.figures(subject(None), trial(), pair)
        assert (found["ratio"], found["low"], found["high"]) == (2.0, 1.0, 2.0)
        assert (found["seconds"], found["peer_seconds"], found["pairs"]) == (1.0, 2.0, 5)

    def test_a_cost_is_ours_over_the_other_per_unit_of_work(self):
        cost = replace(subject(None), peer="our LSTM")
        found = results.figures(cost, trial(work=(10.0, 40.0)), Pair([3.0] * 5, [8.0] * 5))
        assert found["ratio"] == pytest.approx((3 / 10) / (8 / 40))
        assert (found["seconds"], found["peer_seconds"]) == pytest.approx((0.3, 0.2))

    def test_a_multiply_add_counts_two(self):
        found = results.figures(subject(None), replace(trial(), multiply_adds=3e9), Pair([2.0] * 5, [1.0] * 5))
        assert found["gflops"] == pytest.approx(3.0)
        whole = Results({}, [row(gflops=25.0)])
        whole.set_peak(100.0)
        assert whole.rows[0].percent_of_peak == 25.0
        assert whole.machine["fma_peak_gflops"] == 100.0

    def test_middle_half(self):
        assert middle_half([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
        assert middle_half([1.0, 3.0]) == (1.5, 2.0, 2.5)


class TestHonesty:
    @pytest.mark.parametrize(
        ("low", "high", "marked"), [(0.9, 1.1, True), (1.0, 1.2, True), (1.01, 1.2, False), (0.5, 0.99, False)]
    )
    def test_a_figure_whose_middle_half_holds_one_is_marked_and_the_mark_explained(self, low, high, marked):
        found = Results(dict(MACHINE), [row(1.05, low, high)])
        assert found.rows[0].undecided is marked
        for text in (text_of(found), tables.markdown(found)):
            assert ("~1.05×" in text) is marked
            assert (tables.LEGEND in " ".join(text.split())) is marked

    def test_geometric_mean(self):
        assert results.geometric_mean([row(0.5), row(8.0)]) == pytest.approx(2.0)
        assert results.geometric_mean([row(0.5), row(refused="differs")]) is None
        assert results.geometric_mean([]) is None

    def test_what_was_not_measured_is_named(self):
        rows = [row(), row(shape=Shape(9, 9, 9, 9), refused="results differ by 1.0e-01")]
        skipped = {"LSTM vs JAX": "jax not installed (pip install 'recollect[bench]')"}
        found = Results(dict(MACHINE), rows, skipped, ["GRU vs torch.nn training (1, 2, 3, 4)"])
        text = text_of(found)
        assert "refused: LSTM vs torch.nn training (9, 9, 9, 9): results differ by 1.0e-01" in text
        assert "skipped: LSTM vs JAX: jax not installed (pip install 'recollect[bench]')" in text
        assert "no time for: GRU vs torch.nn training (1, 2, 3, 4)" in text
        assert "**-**" in tables.markdown(found)

    def test_tables_have_every_subject(self):
        found = everything()
        text = text_of(found)
        for each in found.rows:
            assert each.title.partition(" over ")[0] in text


class TestFiles:
    def test_json_comes_back_as_it_was(self, tmp_path):
        found = everything()
        found.skipped["LSTM vs JAX"] = "jax not installed"
        found.save(tmp_path / "r.json")
        assert results.read(tmp_path / "r.json") == found

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": {}, "rows": [{"shape": [1]}]}'])
    def test_what_is_no_file_of_results_is_refused(self, tmp_path, content):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(DataError, match="no file of results"):
            results.read(tmp_path / "r.json")

    def test_are_whole_or_not_there(self, tmp_path, monkeypatch):
        files = tmp_path / "b.json", tmp_path / "b.svg"
        terminal.write(Results(dict(MACHINE), [row()]), *files)
        before = [path.read_bytes() for path in files]

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            terminal.write(everything(), *files)
        assert [path.read_bytes() for path in files] == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.svg"]

    def test_nothing_measured_draws_nothing(self, tmp_path):
        terminal.write(Results(dict(MACHINE)), tmp_path / "b.json", tmp_path / "b.svg")
        assert json.loads((tmp_path / "b.json").read_text())["rows"] == []
        assert not (tmp_path / "b.svg").exists()


class TestChart:
    def words(self, found: Results) -> str:
        tree = ET.fromstring(chart.svg(found))
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        return "\n".join("".join(each.itertext()) for each in tree.iter("{http://www.w3.org/2000/svg}text"))

    def test_names_every_subject_shape_and_the_machine(self):
        found = everything()
        words = self.words(found).replace("\N{NO-BREAK SPACE}", " ")
        for each in found.rows:
            assert f"{each.title}, {each.mode}" in words
            assert str(tuple(each.shape)) in words
        assert "Example (example), 2 threads, float32; torch 2.13.0" in words

    def test_says_what_is_refused_and_skipped(self):
        words = self.words(Results(dict(MACHINE), [row(refused="differs")], {"LSTM vs JAX": "jax not installed"}))
        assert "refused" in words
        assert "Skipped: LSTM vs JAX, jax not installed" in words

    def test_an_undecided_dot_is_hollow(self):
        def faces(found):
            (axes,) = chart.figure(Results(dict(MACHINE), [found])).axes
            return [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]

        assert faces(row(1.05, 0.9, 1.1)) == ["none"]
        assert faces(row(2.0)) == [chart.PEERS["torch.nn"][0]]

    def test_is_the_same_every_time(self):
        assert chart.svg(everything()) == chart.svg(everything())

    @pytest.mark.parametrize("ratio", [1e-3, 1.0, 3e3])
    def test_any_ratio_is_on_the_axis(self, ratio):
        (axes,) = chart.figure(Results(dict(MACHINE), [row(ratio)])).axes
        low, high = axes.get_xlim()
        assert low < min(ratio, 1) <= max(ratio, 1) < high


@pytest.mark.parametrize("columns", [1, 10, 40])
def test_every_figure_is_there_at_any_width(monkeypatch, capsys, columns):
    shown = []
    for width in (columns, 1000):
        monkeypatch.setenv("COLUMNS", str(width))
        console = Terminal()
        for part in tables.terminal(everything(), console.width):
            console.print(part, markup=False)
        shown.append(set(re.findall(r"\d\S*", capsys.readouterr().out)))
    assert shown[0] >= shown[1] > set()
