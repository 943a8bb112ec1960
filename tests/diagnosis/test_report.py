"""The report is one whole file, says the verdict first, and shows all that was measured."""

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from recollect.diagnosis import Finding
from recollect.diagnosis.report import sparkline, to_html, words

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

    @property
    def pictures(self):
        return [each for each in self.all("svg") if each.get("aria-hidden") != "true"]


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


def html_text(page):
    return "".join(Page(page).text)


def words_of(page):
    """The text of its body, every run of spaces as one."""
    read = Page(page)
    start = read.text.index(style) + 1 if (style := next((t for t in read.text if ":root {" in t), "")) else 0
    return " ".join(" ".join(read.text[start:]).split())


class TestPage:
    def test_it_needs_nothing_else(self, page, everything):
        for each in (page, to_html(everything)):
            assert len(each) < 1_500_000
            rest, images = re.subn(r'\b(?:src|href)="data:image/png;base64,[\w+/=]*"', "", each)
            rest = rest.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, not a place
            assert images
            assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|data:image", rest)
            assert not re.search(r'\b(?:src|href)="[^#]', rest)
            assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in Page(each).elements}

    def test_it_lets_nothing_in(self, page):
        (policy,) = [each for each in Page(page).all("meta") if "http-equiv" in each]
        assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

    def test_light_dark_phone_and_paper(self, page):
        assert "prefers-color-scheme: dark" in page
        assert "@media print" in page
        assert Page(page).all("meta")[1]["content"].startswith("width=device-width")

    def test_links_lead_somewhere(self, everything):
        read = Page(to_html(everything))
        places = {attrs["id"] for _, attrs in read.elements if "id" in attrs}
        assert {each["href"] for each in read.all("a")} <= {f"#{place}" for place in places}

    def test_names_are_escaped(self, tmp_path):
        model = nn.Sequential()
        model.add_module("<b>&", nn.RNN(1, 2))
        page = to_html(recollect.diagnose(model, torch.randn(4, 1, 1)))
        assert "<b>&" not in page
        assert Page(page).pictures
        assert "<b>&.l0.h" in html_text(page)

    def test_it_replaces_the_old_one_or_fails_whole(self, diagnosis, tmp_path):
        path = tmp_path / "report.html"
        path.write_text("old")
        diagnosis.to_html(str(path))
        assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(FileNotFoundError):
            diagnosis.to_html(tmp_path / "missing" / "report.html")


class TestVerdict:
    def test_it_comes_first(self, page, diagnosis):
        assert "<title>The gradient vanishes: 1.l1.h</title>" in page
        body = words_of(page)
        assert body.startswith("The gradient vanishes warning No state's gradient")
        assert diagnosis.findings[0].remedy.splitlines()[0] in body[: body.index("Gradient horizon")]

    def test_a_worse_finding_beside_it_is_told_with_its_remedy(self, diagnosis):
        bad = Finding("not_finite", "error", "at epoch 3 there was a NaN", "repair()", "step")
        also = Finding("dead_units", "warning", "5 of 9 are dead", "revive()", "model")
        page = to_html(dataclasses.replace(diagnosis, findings=[*diagnosis.findings, bad, also]))
        head = page[page.index("<header") : page.index("</header>")] + "</header>"
        said = words_of(head)
        assert said.startswith("The gradient vanishes warning No state's gradient")
        assert "Not finite error At epoch 3 there was a NaN." in said
        assert "repair()" in said
        assert "revive()" not in said
        assert "1 more finding below" in said
        assert 'class="error"' in head

    def test_severity_is_said_in_words_and_shapes(self, diagnosis):
        every = [
            Finding("exploding", "error", "e", "a()", "step"),
            Finding("vanishing", "warning", "w", "b()", "model"),
            Finding("healthy", "info", "h", ""),
        ]
        page = to_html(dataclasses.replace(diagnosis, findings=every))
        badges = re.findall(r'<span class="badge (\w+)"><svg[^>]*><path d="([^"]*)"/></svg>([^<]*)</span>', page)
        assert {(severity, said) for severity, _, said in badges} == {
            ("error", "error"), ("warning", "warning"), ("info", "nothing wrong"),
        }  # fmt: skip
        assert len({shape for _, shape, _ in badges}) == 3

    def test_all_findings_are_told(self, page, diagnosis):
        said = html_text(page)
        for finding in diagnosis.findings:
            assert words.sentence(finding.evidence) in said
            assert finding.remedy in said

    def test_sentences(self):
        assert words.sentence("the end") == "The end."
        assert words.sentence("rnn.l0 is dead") == "rnn.l0 is dead."  # a name stays as it is
        assert words.sentence("5 of 6") == "5 of 6."


class TestSections:
    def test_every_layer_and_direction_has_its_gradients(self, page, diagnosis):
        labels = [each["aria-label"] for each in Page(page).pictures]
        curves = [label for label in labels if label.startswith("Gradient against lag of")]
        assert [label.split(" of ")[1].split(",")[0] for label in curves] == [
            "1.l1",  # the one that is judged comes first
            "1.l0",
            "1.l0_reverse",
            "1.l1_reverse",
        ]
        assert f"h: {diagnosis.gradient_horizon} of 120 steps" in curves[0]

    def test_which_steps_still_teach_the_weights(self, diagnosis):
        curve = np.zeros(120)
        curve[:3] = 6.0, 3.0, 1.0
        page = to_html(dataclasses.replace(diagnosis, weight_curves={"1.l1": curve}))
        assert "1.l1: the last 2 of 120 steps bring 90%" in html_text(page)
        page = to_html(dataclasses.replace(diagnosis, weight_curves={"1.l1": 0 * curve}))
        assert "1.l1: no step teaches anything" in html_text(page)

    def test_every_gate_is_shown_and_named_by_what_it_does(self, page, diagnosis):
        said = words_of(page)
        story = ["Input", "Norm of the states", "What the cell kept f", "What it let in i", "What it let out o"]
        places = [said.index(each, said.index("How to read this. One sequence")) for each in story]
        assert places == sorted(places)
        images = re.findall(r'<image [^>]*href="(data:image/png[^"]*)"', page)
        assert len(images) == len(diagnosis.gates) == 16
        assert f"4 units, {words.activity(diagnosis.gates['1.l1.f'])}" in said

    def test_gates_of_other_cells(self):
        torch.manual_seed(0)
        assert "What the cell kept z" in words_of(to_html(recollect.diagnose(nn.GRU(1, 3), torch.randn(9, 1, 1))))

        @recollect.cell(gates="keep new", states="m")
        def leaky(inp, rec, prev):
            keep = torch.sigmoid(inp.keep + rec.keep)
            return keep * prev.m + (1 - keep) * torch.tanh(inp.new + rec.new)

        for cell in (leaky, recollect.cells.rnn_relu, recollect.cells.slstm, recollect.cells.mgu):
            layer = recollect.nn.Recurrent(cell, 5, 3)
            found = recollect.diagnose(layer, torch.randn(9, 2, 5))
            page = to_html(found)
            assert page.count("<image ") == len(found.gates)
            assert "5 features, the first 4 of them" in page
        assert "Gate keep" in words_of(
            to_html(recollect.diagnose(recollect.nn.Recurrent(leaky, 1, 3), torch.randn(9, 2, 1)))
        )

    def test_a_cell_without_gates_has_no_such_section(self):
        @recollect.cell(gates="a", states="h")
        def linear(inp, rec, prev):
            return inp.a + rec.a

        page = to_html(recollect.diagnose(recollect.nn.Recurrent(linear, 1, 2), torch.randn(5, 1, 1)))
        assert "Gates over time" not in page

    def test_numbers(self, page, diagnosis):
        said = html_text(page)
        for name, value in diagnosis.spectral_radius.items():
            assert name in said
            assert f"{value:.4g}" in said
            assert f"{diagnosis.spectral_norm[name]:.4g}" in said

    def test_training(self, everything):
        page = to_html(everything)
        said, probe = words_of(page), everything.training
        count = sum(scale < 1 for scale in probe.scales)
        assert 0 < count < 40
        assert f"{count} of 40 steps clipped to 0.5" in said
        assert "limit 0.5" in said
        (strokes,) = re.findall(r'class="strokes" d="([^"]*)"', page)
        assert strokes.count("M") == count
        for title in (
            "Loss",
            "Gradient norm, log scale",
            "Update-to-weight ratio",
            "How open the gates of rnn.l0 were",
        ):
            assert title in said
        assert "Gradient by lag of rnn.l0.h over training" in said

    def test_training_that_lost_its_numbers(self, everything):
        probe = recollect.diagnosis.Probe(recollect.nn.GRU(1, 2))
        with probe:
            probe.on_step(0, math.nan, recollect.training.Clipped(math.nan, 0.0, True, False))
            probe.on_step(1, 1.0, recollect.training.Clipped(0.0, 1.0, False, True))
        page = to_html(dataclasses.replace(everything, training=probe))
        assert "0 of 2 steps clipped, 1 skipped. First not finite in epoch 1, step 1: the loss" in words_of(page)
        assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', re.sub(r'aria-label="[^"]*"', "", page))

    def test_memory(self, everything):
        said, memory = words_of(to_html(everything)), everything.memory
        assert " ".join(memory.answer.split()) in said
        assert f"Memory horizon at least {memory.memory_horizon} of 40 steps" in said
        for reach in (memory.by_intervention, memory.by_gradient):
            assert f"{reach.quartiles[1]:.4g}" in said

    def test_surface(self, everything):
        page = to_html(everything)
        assert everything.surface.to_svg() in page
        assert str(everything.surface) in html_text(page)

    def test_directions(self, everything):
        said = words_of(to_html(everything))
        assert f"times {everything.spectrum.growth_per_step:.4g} per step" in said
        assert f"Largest Lyapunov exponent {everything.lyapunov.exponents[0]:.3g} per step" in said

    def test_exponents_that_are_none(self, everything):
        exponents = np.array([0.1, -1.0, -math.inf])
        lyapunov = dataclasses.replace(everything.lyapunov, exponents=exponents)
        page = to_html(dataclasses.replace(everything, lyapunov=lyapunov))
        assert page.count('class="dot"') == 2
        assert "1 at minus infinity" in html_text(page)
        assert "chaotic" in html_text(page)

    def test_what_was_not_measured_is_not_spoken_of(self, page):
        for title in ("Memory", "Training", "Error surface", "Directions of the state"):
            assert f"<h2>{title}</h2>" not in page

    def test_every_picture_has_words(self, everything):
        read = Page(to_html(everything))
        assert all(each["role"] == "img" and len(each["aria-label"]) > 20 for each in read.pictures)
        assert all(each["alt"] for each in read.all("img"))


def test_a_page_stays_small_however_long_and_deep(diagnosis):
    """10,000 steps, 60 layers of 512 units, gates of pure noise."""
    T, rng = 10_000, np.random.default_rng(0)
    layers = [f"model.encoder.layers.{number}.rnn.l0" for number in range(60)]
    noise = dataclasses.replace(
        diagnosis.gates["1.l1.f"], example=rng.random((T, 512), dtype=np.float32), openness=rng.random(T)
    )
    curve = np.exp(rng.normal(size=T))
    big = dataclasses.replace(
        diagnosis,
        curve=f"{layers[-1]}.h",
        grad_norm_by_lag=curve,
        curves={f"{layer}.{state}": curve for layer in layers for state in "hc"},
        horizons={f"{layer}.{state}": T for layer in layers for state in "hc"},
        weight_curves=dict.fromkeys(layers, curve),
        gates={f"{layer}.{gate}": noise for layer in layers for gate in "ifgo"},
        state_norms={f"{layer}.{state}": curve for layer in layers for state in "hc"},
        example={layer.removesuffix(".l0"): rng.random((T, 300)) for layer in layers[-6:]},
        spectral_radius={f"{layer}.weight": 1.0 for layer in layers},
        spectral_norm={f"{layer}.weight": 1.0 for layer in layers},
    )
    page = to_html(big)
    assert len(page.encode()) < 1_500_000
    said = words_of(page)
    assert "54 more layers: see the table of gates." in said
    assert "48 more layers: see the table of gradients." in said
    for layer in layers:  # what is not drawn is in the tables
        assert said.count(f"{layer}.c") >= 1
        assert said.count(f"{layer}.f") >= 1


class TestTerminal:
    def test_sparkline(self):
        assert sparkline(10.0 ** -np.arange(8)) == "█▇▆▅▄▃▂▁"
        assert sparkline(np.ones(5)) == "█████"
        assert sparkline(np.array([1.0, 0.01, 0.0, np.inf])) == "█▁ !"

    @pytest.mark.parametrize("curve", [[0.0, 0.0], [1.0, math.inf, math.nan], [0.0, 5e-324], [1.0] * 5000])
    def test_odd_curves(self, curve):
        assert len(sparkline(np.array(curve))) == min(len(curve), 60)

    def test_the_short_form(self, diagnosis):
        lines = str(diagnosis).splitlines()
        assert lines[0] == "The gradient vanishes: 1.l1.h, 120 steps"
        assert lines[1] == f"  |dL/ds| by lag     {sparkline(diagnosis.grad_norm_by_lag)}"
        assert f"gradient horizon   {diagnosis.gradient_horizon} of 120 steps" in str(diagnosis)
        assert diagnosis.findings[0].remedy.splitlines()[-1] in str(diagnosis)
        assert [line.split()[1] for line in lines if line.startswith("  gate ")] == ["i", "f", "g", "o"]

    def test_what_else_was_measured(self, everything):
        said = str(everything)
        assert f"  memory horizon     at least {everything.memory.memory_horizon} of 40 steps" in said
        assert f"  largest exponent   {everything.lyapunov.exponents[0]:.3g} per step" in said
        assert "of 40 steps clipped to 0.5" in said

    def test_lines_are_short(self, diagnosis, everything):
        long = dataclasses.replace(
            everything,
            findings=[Finding("vanishing", "warning", "a word " * 40 + "and an_unbroken_name", "code()\n    more()")],
            notes=["it goes on " * 30],
        )
        for each in (diagnosis, everything, long):
            assert max(map(len, str(each).splitlines())) <= 100
        assert "    code()\n        more()" in str(long)
        assert "and an_unbroken_name" in str(long)
