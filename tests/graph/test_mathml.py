"""MathML: well-formed for whatever can be written, and the same equations as the LaTeX."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings

from random_graphs import graphs
from recollect import cells
from recollect.graph.latex import equations
from recollect.graph.mathml import mathml


def text_of(element):
    """What stands in it, without white space; TeX's thin spaces are elements of their own."""
    return "".join("".join(element.itertext()).split())


@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_has_an_equation_for_each_line_of_latex(name):
    graph = cells.by_name(name).graph
    found = [ET.fromstring(each) for each in mathml(graph)]
    assert len(found) == len(equations(graph))
    assert all((each.tag, each.get("display")) == ("math", "block") for each in found)


def test_what_an_equation_says():
    *_, c, h = (ET.fromstring(each) for each in mathml(cells.lstm.graph))
    assert text_of(c) == "ct=ftct−1+itgt"
    assert text_of(h) == "ht=ottanh(ct)"
    assert [text_of(each) for each in c.iter("msub")] == ["ct", "ft", "ct−1", "it", "gt"]


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_random_graphs_are_well_formed_and_need_nothing(graph):
    for each in mathml(graph):
        ET.fromstring(each)
        assert "http" not in each
