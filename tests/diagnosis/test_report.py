"""The report is one whole file, says the verdict first, and draws what the numbers say."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from recollect.diagnosis.charts import gradient as chart
from recollect.diagnosis.report import sparkline

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects the text and the elements of a page, and checks that they are nested well."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for each, attrs in self.elements if each == tag]


@pytest.fixture(scope="module")
def diagnosis():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True))
    return recollect.diagnose(model, torch.randn(3, 120, 2))


@pytest.fixture
def page(diagnosis, tmp_path):
    path = tmp_path / "report.html"
    diagnosis.to_html(path)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page):
    assert len(page) < 1_500_000
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|\bhref=", page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in Page(page).elements}


def test_the_page_says_the_verdict_first(page, diagnosis):
    read = Page(page)
    text = " ".join("".join(read.text[read.text.index("The gradient vanishes") :]).split())
    assert text.startswith("The gradient vanishes")
    assert read.all("h1")
    words = html_text(page)
    for finding in diagnosis.findings:
        assert finding.evidence in words
        assert finding.remedy in words
    for name, value in diagnosis.spectral_radius.items():
        assert name in words
        assert f"{value:.4g}" in words


def html_text(page):
    return "".join(Page(page).text)


def test_every_layer_and_direction_has_its_figure(page, diagnosis):
    figures = Page(page).all("svg")
    assert [each["aria-label"].split(" of ")[1].split(",")[0] for each in figures] == [
        "1.l1",  # the one that is judged comes first
        "1.l0",
        "1.l0_reverse",
        "1.l1_reverse",
    ]
    assert all(each["role"] == "img" for each in figures)
    assert f"h: {diagnosis.gradient_horizon} of 120 steps" in figures[0]["aria-label"]


def test_light_dark_and_phone(page):
    assert "prefers-color-scheme: dark" in page
    assert Page(page).all("meta")[1]["content"].startswith("width=device-width")


def test_names_are_escaped(tmp_path):
    model = nn.Sequential()
    model.add_module("<b>&", nn.RNN(1, 2))
    path = tmp_path / "report.html"
    recollect.diagnose(model, torch.randn(4, 1, 1)).to_html(path)
    page = path.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<b>&.l0.h" in html_text(page)


def test_a_line_is_drawn_through_its_numbers():
    curve = 10.0 ** -np.arange(11)
    svg = chart.gradient_by_lag({"h": curve}, {"h": 3}, "label")
    (points,) = re.findall(r'points="([^"]*)"', svg)
    xy = np.array([[float(v) for v in point.split(",")] for point in points.split()])
    assert len(xy) == 11
    assert np.ptp(np.diff(xy[:, 0])) < 0.2  # lags are evenly spaced
    assert np.ptp(np.diff(xy[:, 1])) < 0.2  # and decades too
    assert (np.diff(xy[:, 1]) > 0).all()  # downwards
    (ring,) = re.findall(r'<circle class="s0" cx="([^"]*)" cy="([^"]*)"', svg)
    assert [float(each) for each in ring] == xy[2].tolist()


@pytest.mark.parametrize(
    "curve", [[0.0, 0.0], [1.0, math.inf, math.nan], [0.0, 5e-324], [1e308, 1e-308, 0.0], [1.0] * 5000]
)
def test_odd_curves_are_drawn_without_numbers_that_are_none(curve):
    curve = np.array(curve)
    svg = chart.gradient_by_lag({"h": curve}, {"h": 1}, "label")
    assert not re.search(r"nan|inf", svg)
    assert len(svg) < 20_000
    assert len(sparkline(curve)) == min(len(curve), 60)


def test_sparkline():
    assert sparkline(10.0 ** -np.arange(8)) == "█▇▆▅▄▃▂▁"
    assert sparkline(np.ones(5)) == "█████"
    assert sparkline(np.array([1.0, 0.01, 0.0, np.inf])) == "█▁ !"


def test_the_terminal_form(diagnosis):
    lines = str(diagnosis).splitlines()
    assert lines[0] == "The gradient vanishes: 1.l1.h, 120 steps"
    assert max(map(len, lines)) < 200
    assert f"gradient horizon   {diagnosis.gradient_horizon} of 120 steps" in str(diagnosis)
    assert diagnosis.findings[0].remedy.splitlines()[-1] in str(diagnosis)


def test_a_report_replaces_the_old_one_or_fails_whole(diagnosis, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    diagnosis.to_html(str(path))
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        diagnosis.to_html(tmp_path / "missing" / "report.html")
