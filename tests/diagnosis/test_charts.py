"""Charts draw what the numbers say, whatever the numbers are."""

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.dots import dots
from recollect.diagnosis.charts.gradient import gradient_by_lag
from recollect.diagnosis.charts.heatmap import heatmap, shrink
from recollect.diagnosis.charts.image import data_uri
from recollect.diagnosis.charts.lines import legend, lines

NAN, INF = math.nan, math.inf


def points(svg):
    """The points of every line, [n, 2] each."""
    return [
        np.array([[float(v) for v in point.split(",")] for point in each.split()])
        for each in re.findall(r'points="([^"]*)"', svg)
    ]


def pixels(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


class TestLines:
    def test_a_line_is_drawn_through_its_numbers(self):
        svg = gradient_by_lag({"h": 10.0 ** -np.arange(11)}, {"h": 3}, "label")
        (xy,) = points(svg)
        assert len(xy) == 11
        assert np.ptp(np.diff(xy[:, 0])) < 0.2  # lags are evenly spaced
        assert np.ptp(np.diff(xy[:, 1])) < 0.2  # and decades too
        assert (np.diff(xy[:, 1]) > 0).all()  # downwards
        (ring,) = re.findall(r'<circle class="s0" cx="([^"]*)" cy="([^"]*)"', svg)
        assert [float(each) for each in ring] == xy[2].tolist()

    @pytest.mark.parametrize(
        "curve",
        [[0.0, 0.0], [1.0, INF, NAN], [0.0, 5e-324], [1e308, 1e-308, 0.0], [1.0] * 5000, [NAN], [-1.0, 0.0], [7.0]],
    )
    def test_odd_curves_are_drawn_without_numbers_that_are_none(self, curve):
        curve = np.array(curve)
        for svg in (
            gradient_by_lag({"h": curve}, {"h": 1}, "label"),
            lines({"h": curve}, axes.linear([curve]), axes.steps(len(curve) - 1), "label"),
            dots(curve, axes.linear([curve]), axes.steps(len(curve)), "label", places=np.arange(len(curve))),
        ):
            assert not re.search(r"nan|inf", svg)
            assert len(svg) < 20_000 or "dot" in svg

    def test_of_very_many_numbers_every_peak_is_drawn(self):
        curve = np.ones(10_000)
        curve[[17, 5_003, 9_998]] = 1e6, 1e-6, 1e6
        (xy,) = points(gradient_by_lag({"h": curve}, {}, "label"))
        assert len(xy) < 1_000
        level = np.median(xy[:, 1])
        assert [(xy[:, 1] < level - 50).sum(), (xy[:, 1] > level + 50).sum()] == [2, 1]

    def test_lines_break_where_there_is_no_number(self):
        svg = gradient_by_lag({"h": np.array([1.0, 0.1, NAN, 0.1, 0.0, 1.0])}, {}, "label")
        assert [len(each) for each in points(svg)] == [2, 1 + 1, 1 + 1]  # a single point is drawn as a dot

    def test_places_levels_and_marks(self):
        across = axes.steps(100)
        svg = lines(
            {"a": np.array([1.0, 2.0])}, axes.linear([np.array([0.0, 2.0])]), across, "label",
            places={"a": np.array([0.0, 50.0])}, levels=[1.0, 99.0], marks=[0, 50, 50.05],
        )  # fmt: skip
        (xy,) = points(svg)
        assert xy[:, 0].tolist() == [axes.LEFT, (axes.LEFT + axes.RIGHT) / 2]
        ((level,),) = [re.findall(r'class="level" d="M\d+ ([\d.]+)H', svg)]  # that of 99 lies outside
        assert float(level) == pytest.approx(xy[0, 1])
        (strokes,) = re.findall(r'class="strokes" d="([^"]*)"', svg)
        assert strokes.count("M") == 2

    def test_the_legend_names_every_style_and_is_escaped(self):
        said = legend({"<a>": "", "b": "5 & 6"}, level="limit", marks="clipped")
        assert said.count("<li>") == 4
        assert "&lt;a&gt;" in said
        assert "b: 5 &amp; 6" in said


class TestAxes:
    def test_a_flat_curve_looks_flat(self):
        assert axes.decades([np.array([3.0, 3.1])]).high - axes.decades([np.array([3.0, 3.1])]).low == 2
        low = axes.linear([np.array([5.0, 5.1])]).low
        assert low > 4  # what varies little far from 0 is not squeezed by it
        assert axes.linear([np.array([1.0, 5.0])]).low == 0.0
        assert axes.linear([np.array([7.0])]).low == 0.0

    @pytest.mark.parametrize("last", [0, 1, 2, 3, 7, 131, 9_999])
    def test_steps_are_whole_and_few(self, last):
        ticks = axes.steps(last).ticks
        assert [text for number, text in ticks] == [str(int(number)) for number, _ in ticks]
        assert 1 <= len(ticks) <= 7
        assert all(0 <= number <= last for number, _ in ticks)

    def test_ticks_are_inside_and_round(self):
        for low, high in ((-3.3, 2.0), (0.0, 1e-9), (1e6, 1.2e6), (-8e11, -1.0)):
            axis = axes.linear([np.array([low, high])])
            assert all(axis.low <= number <= axis.high for number, _ in axis.ticks)
            assert 2 <= len(axis.ticks) <= 6

    @pytest.mark.parametrize("high", [3e-9, 0.07, 40.0, 1e3, 3e4, 7e5, 2e6, 8e11, 2e300])
    def test_numbers_are_written_in_few_characters(self, high):
        for number, text in axes.linear([np.array([-high, high])]).ticks:
            assert len(text) <= 6 + (high > 1e100)
            assert float(text.replace("k", "e3")) == pytest.approx(number, rel=1e-3)

    def test_powers_of_ten(self):
        assert axes.power_of_ten(-12) == "10⁻¹²"


class TestHeatmap:
    def test_a_pixel_for_each_number(self):
        values = np.array([[0.0, 0.5, 1.0], [-9.0, NAN, 9.0]])
        painted = pixels(data_uri(values, 0.0, 1.0, "gray", 255))
        assert painted.shape == (2, 3, 4)
        assert painted[0, :, 0].tolist() == [0, 128, 255]
        assert painted[1, [0, 2], 0].tolist() == [0, 255]
        assert painted[..., 3].tolist() == [[255] * 3, [255, 0, 255]]

    def test_fewer_shades_are_close(self):
        import matplotlib

        values = np.random.default_rng(0).random((7, 5))
        exact = matplotlib.colormaps["viridis"](values, bytes=True)[..., :3].astype(int)
        assert abs(pixels(data_uri(values, 0.0, 1.0, shades=48))[..., :3] - exact).max() < 12

    def test_equal_ends_are_no_division_by_zero(self):
        assert (pixels(data_uri(np.zeros((2, 2)), 0.0, 0.0))[..., 3] == 255).all()

    def test_shrinking_takes_means_of_neighbours(self):
        values = np.arange(40.0).reshape(4, 10)
        values[0, 0] = NAN
        small = shrink(values, 2, 5)
        naive = [[np.nanmean(values[2 * r : 2 * r + 2, 2 * c : 2 * c + 2]) for c in range(5)] for r in range(2)]
        assert np.allclose(small, naive)
        assert shrink(values, 4, 10) is values
        assert shrink(np.ones((129, 1001))).shape == (64, 400)
        assert np.isnan(shrink(np.full((2, 2), NAN), 1, 1)).all()

    def test_it_is_a_picture_of_bounded_size(self):
        noise = np.random.default_rng(0).random((512, 10_000))
        svg = heatmap(noise, 0.0, 1.0, axes.steps(9_999, "step", cells=True), 'a "label"')
        assert len(svg) < 40_000
        assert "a &quot;label&quot;" in svg
        assert ">8000</text>" in svg
