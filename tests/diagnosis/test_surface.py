"""The error surface: its numbers against closed forms and plain torch, its cliffs where they must be, its picture."""

import copy
import csv
import io
import json
import math
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from last_step import LastStep
from recollect.diagnosis import error_surface
from recollect.diagnosis.surface import cliffs
from recollect.diagnosis.surface.plane import random_plane
from recollect.diagnosis.surface.weights import Weights
from recollect.errors import InputError

T = 50


@recollect.cell(gates="h", states="h")
def rnn_sigmoid(inp, rec, prev):
    return torch.sigmoid(inp.h + rec.h)


def unit(w=5.5, b=-3.0):
    """The network of Pascanu, Mikolov and Bengio 2013, figure 6: one unit, no input; its bias in two parts."""
    layer = recollect.nn.Recurrent(rnn_sigmoid, 1, 1)
    for name, value in {"weight_ih_l0": 1.0, "weight_hh_l0": w, "bias_ih_l0": b - 1.0, "bias_hh_l0": 1.0}.items():
        nn.init.constant_(layer.get_parameter(name), value)
    return layer


def unit_loss(output, _):
    return (output[0][-1] - 0.7).square().mean()


def unit_surface(model=None, **options):
    options = {"ranges": ((4.5, 7.0), (-3.5, -1.5)), "progress": False} | options
    return error_surface(model or unit(), torch.zeros(T, 1, 1), loss=unit_loss, **options)


@pytest.fixture(scope="module")
def default():
    return unit_surface()


def closed_form(w, b):
    h = np.zeros(np.broadcast_shapes(np.shape(w), np.shape(b)))
    for _ in range(T):
        h = 1 / (1 + np.exp(-(w * h + b)))
    return (h - 0.7) ** 2


def wall(w):
    """The bias at which the lower resting point of h = sigmoid(w h + b) vanishes: there w h (1 - h) = 1."""
    h = (1 - np.sqrt(1 - 4 / w)) / 2
    return np.log(h / (1 - h)) - w * h


@pytest.fixture
def lstm():
    torch.manual_seed(3)
    return LastStep(nn.LSTM(3, 5))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 4, 3, generator=generator), torch.randn(4, 1, generator=generator)


def small(model, data, **options):
    return error_surface(model, *data, **{"points": 5, "steps": 3, "progress": False} | options)


def torch_loss(model, vector, data):
    """Plain torch, in float64, with weights of our choice."""
    model = copy.deepcopy(model).double()
    nn.utils.vector_to_parameters(vector, model.parameters())
    with torch.no_grad():
        return nn.functional.mse_loss(model(data[0].double()), data[1].double()).item()


def here(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().double()


class TestOneUnit:
    def test_the_loss_is_the_recursions(self):
        surface = unit_surface(points=9)
        assert surface.axes == ("recurrent weight w", "bias b")
        np.testing.assert_array_equal(surface.x, np.linspace(4.5, 7, 9))
        np.testing.assert_array_equal(surface.y, np.linspace(-3.5, -1.5, 9))
        np.testing.assert_allclose(
            surface.loss, closed_form(surface.x[None], surface.y[:, None]), rtol=1e-9, atol=1e-14
        )
        assert surface.centre == pytest.approx((5.5, -3.0))  # b is the sum of both biases
        assert surface.centre_loss == pytest.approx(closed_form(5.5, -3.0).item())

    def test_axes_go_radius_around_the_present_values(self):
        surface = unit_surface(points=3, ranges=None, radius=0.5, steps=0)
        np.testing.assert_allclose(surface.x, [5, 5.5, 6])
        np.testing.assert_allclose(surface.y, [-3.5, -3, -2.5])

    def test_the_cliff_is_where_the_resting_point_vanishes(self, default):
        surface = default
        step = surface.y[1] - surface.y[0]
        for column, w in enumerate(surface.x):
            marked = surface.y[surface.cliffs[:, column]]
            assert len(marked) >= 2
            # After 50 steps the unit is still on its way past a resting point that has just vanished.
            assert np.abs(marked - wall(w)).max() <= 3 * step
        assert surface.cliffs.mean() < 0.08
        assert surface.steepness > 50

    def test_a_finer_grid_marks_the_same_region(self):
        coarse, fine = unit_surface(points=31, steps=0), unit_surface(points=61, steps=0)
        places = [
            np.argwhere(each.cliffs) / (len(each.x) - 1) for each in (coarse, fine)
        ]  # as shares of height and width
        for some, others in (places, places[::-1]):
            for place in some:
                assert np.abs(others - place).max(1).min() <= 1 / 30 + 1e-9

    def test_descent_follows_the_gradient(self):
        surface = unit_surface(points=5, start=(5.0, -2.6), steps=12, learning_rate=0.2, max_norm=0.3)
        for name, most in {"descent": math.inf, "descent, clipped": 0.3}.items():
            places = surface.paths[name]
            np.testing.assert_array_equal(places[0], (5.0, -2.6))
            np.testing.assert_allclose(surface.path_losses[name], closed_form(*places.T), rtol=1e-7, atol=1e-12)
            eps = 1e-6
            for (w, b), step in zip(places, np.diff(places, axis=0), strict=False):
                gradient = np.array(
                    [
                        closed_form(w + eps, b) - closed_form(w - eps, b),
                        closed_form(w, b + eps) - closed_form(w, b - eps),
                    ]
                ) / (2 * eps)
                norm = np.linalg.norm(gradient)
                np.testing.assert_allclose(step, -0.2 * gradient * min(1, most / norm), rtol=1e-4, atol=1e-8)

    def test_the_cliff_throws_descent_far_away_and_clipping_holds_it(self):
        surface = unit_surface(points=21, start=(5.5, -3.2), steps=100, learning_rate=0.5, max_norm=0.1)
        free, clipped = surface.paths["descent"], surface.paths["descent, clipped"]
        assert np.abs(np.diff(free, axis=0)).max() > np.ptp(surface.y)
        assert np.linalg.norm(np.diff(clipped, axis=0), axis=1).max() <= 0.5 * 0.1 * (1 + 1e-12)
        assert surface.path_losses["descent"][-1] > 0.08
        assert surface.path_losses["descent, clipped"].min() < 1e-4
        jump, held = surface.jumps
        assert jump > 10
        assert held == pytest.approx(0.05)
        assert abs(surface.brink.place[1] - wall(surface.brink.place[0])) < 0.02

    def test_descent_begins_uphill_of_the_cliff_by_default(self, default):
        surface = default
        (w, b), *_ = surface.paths["descent"]
        assert wall(w) - 0.3 < b < wall(w)
        assert surface.path_losses["descent"][0] > surface.brink.loss
        np.testing.assert_array_equal(surface.paths["descent"][0], surface.paths["descent, clipped"][0])
        assert len(surface.paths["descent, clipped"]) == 41
        assert surface.path_losses["descent, clipped"].min() < 0.1

    def test_a_path_is_read_off_both_biases(self):
        moved = [unit(5.0, -2.0).state_dict(), unit(5.2, -2.5).state_dict()]
        surface = unit_surface(points=3, path=moved, steps=0)
        np.testing.assert_allclose(surface.paths["training"], [(5.0, -2.0), (5.2, -2.5)], atol=1e-6)
        np.testing.assert_allclose(
            surface.path_losses["training"], closed_form(*surface.paths["training"].T), atol=1e-6
        )

    def test_only_for_a_single_unit(self, lstm, data):
        with pytest.raises(InputError, match='"unit" is for a network with a single recurrent unit'):
            small(lstm, data, directions="unit")


class TestRandomPlane:
    def test_the_loss_is_plain_torchs(self, lstm, data):
        surface = small(lstm, data, seed=7)
        plane = random_plane(Weights(copy.deepcopy(lstm).double()), [True] * 6, 1.0, 7)
        for row, column in ((0, 0), (1, 3), (2, 2), (4, 1)):
            vector = here(lstm) + surface.x[column] * plane.directions[0] + surface.y[row] * plane.directions[1]
            assert surface.loss[row, column] == pytest.approx(torch_loss(lstm, vector, data), rel=1e-9)

    def test_the_centre_is_the_models_own_loss(self, lstm, data):
        surface = small(lstm, data)
        assert surface.centre == (0.0, 0.0)
        assert surface.centre_loss == pytest.approx(torch_loss(lstm, here(lstm), data), rel=1e-12)
        assert surface.loss[2, 2] == pytest.approx(surface.centre_loss, rel=1e-12)
        assert len(surface.loss) == len(surface.y) == 5

    def test_a_mean_over_rows_stays_a_mean(self, lstm, data):
        expected = small(lstm, data).loss
        for loss in (nn.MSELoss(), nn.functional.mse_loss, lambda output, target: (output - target).square().mean()):
            np.testing.assert_allclose(small(lstm, data, loss=loss).loss, expected, rtol=1e-12)

    def test_lengths_and_a_bare_layer_are_as_for_diagnose(self, data):
        layer, x, lengths = recollect.nn.GRU(3, 4), data[0].clone(), [12, 3, 7, 5]
        x[3:, 1] = math.nan
        expected = recollect.diagnose(layer, x, lengths=lengths).loss
        surface = small(layer, (x,), lengths=lengths)
        assert surface.centre_loss == pytest.approx(expected, rel=1e-12)
        assert np.isfinite(surface.loss).all()

    def test_diagnose_multiplies_a_mean_by_the_rows(self, lstm, data):
        assert small(lstm, data).centre_loss * 4 == pytest.approx(recollect.diagnose(lstm, *data).loss, rel=1e-12)

    def test_filters_have_the_norms_of_the_models(self):
        weights = Weights(LastStep(nn.LSTM(3, 5), outputs=2).double())
        plane = random_plane(weights, [True] * 6, 1.0, 0)
        for direction in plane.directions:
            for name, part in zip(weights.tensors, weights.split(direction), strict=True):
                own = weights.tensors[name].detach()
                if own.dim() == 2:
                    torch.testing.assert_close(part.norm(dim=1), own.norm(dim=1))
                else:
                    torch.testing.assert_close(part.norm(), own.norm())
                assert not torch.allclose(part, own)
        first, second = plane.directions
        assert abs(first @ second) < 1e-12 * first.norm() * second.norm()
        np.testing.assert_allclose(plane.coordinates([plane.at((0.3, -2.0))]), [[0.3, -2.0]])

    def test_single_numbers_are_in_one_direction_only(self):
        weights = Weights(unit().double())
        first, second = random_plane(weights, [True] * 4, 1.0, 0).directions
        assert first @ second == 0
        torch.testing.assert_close(first.abs() + second.abs(), weights.get().abs())
        assert unit_surface(points=3, directions="random", ranges=None, steps=0).axes[0] == "random direction 1"

    def test_seeds_repeat(self, lstm, data):
        one, again, other = (small(lstm, data, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.loss, again.loss)
        np.testing.assert_array_equal(one.paths["descent"], again.paths["descent"])
        assert not np.allclose(one.loss, other.loss)

    def test_frozen_parameters_stay(self, lstm, data):
        lstm.rnn.requires_grad_(False)
        weights = Weights(copy.deepcopy(lstm).double())
        moving = [tensor.requires_grad for tensor in lstm.parameters()]
        plane = random_plane(weights, moving, 1.0, 0)
        assert all(not part.any() for part in weights.split(plane.directions[0])[:4])
        vector = here(lstm) - plane.directions[0] - plane.directions[1]
        assert small(lstm, data).loss[0, 0] == pytest.approx(torch_loss(lstm, vector, data), rel=1e-9)

    def test_without_cliffs_descent_begins_at_the_present_weights(self, lstm, data):
        surface = small(lstm, data, points=9, steps=10)
        assert not surface.cliffs.any()
        assert surface.brink is None
        assert surface.jumps is None
        np.testing.assert_array_equal(surface.paths["descent"][0], surface.centre)
        losses = surface.path_losses["descent"]
        assert (np.diff(losses) < 0).all()
        assert "cliffs            none" in str(surface)


class TestPathPlane:
    def test_a_path_in_a_plane_is_reproduced(self, lstm, data):
        generator = torch.Generator().manual_seed(1)
        across = torch.linalg.qr(torch.randn(len(here(lstm)), 2, generator=generator, dtype=torch.float64))[0].T
        places = np.array([(-3.0, 0.5), (-2.0, -0.5), (-1.0, 0.7), (0.0, 0.0)])
        path = [here(lstm) + torch.from_numpy(place) @ across for place in places]
        surface = small(lstm, data, path=path)
        found = surface.paths["training"]
        # The same figure, but for a turn of the whole: all distances are kept.
        apart = [np.linalg.norm(each[:, None] - each[None], axis=2) for each in (found, places)]
        np.testing.assert_allclose(*apart, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(places, axis=1), atol=1e-6)
        assert found[0, 0] < 0
        assert np.abs(found).max(0)[0] > np.abs(found).max(0)[1]
        for place in found:
            assert surface.x[0] < place[0] < surface.x[-1]
            assert surface.y[0] < place[1] < surface.y[-1]
        np.testing.assert_allclose(
            surface.path_losses["training"], [torch_loss(lstm, each, data) for each in path], rtol=1e-9
        )
        # The path lies in the plane, so descent from its beginning begins with its loss.
        assert surface.path_losses["descent"][0] == pytest.approx(surface.path_losses["training"][0], rel=1e-6)

    def test_state_dicts_and_vectors_are_the_same(self, lstm, data):
        path = []
        for number in range(4):
            moved = copy.deepcopy(lstm)
            generator = torch.Generator().manual_seed(number)
            for parameter in moved.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            path.append(moved)
        dicts = small(lstm, data, path=[each.state_dict() for each in path])
        vectors = small(lstm, data, path=torch.stack([here(each) for each in path]))
        np.testing.assert_array_equal(dicts.loss, vectors.loss)
        assert "principal direction 1 (" in dicts.axes[0]

    def test_a_straight_path_is_a_line(self, lstm, data):
        direction = torch.randn(len(here(lstm)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        path = [here(lstm) + share * direction for share in (1.0, 0.5, 0.0)]
        surface = small(lstm, data, path=path, steps=0)
        expected = np.array([[-1.0, 0], [-0.5, 0], [0, 0]]) * direction.norm().item()
        np.testing.assert_allclose(surface.paths["training"], expected, atol=1e-6)
        assert surface.axes == ("principal direction 1 (100.0%)", "random direction")

    def test_the_first_of_several_paths_makes_the_plane(self, lstm, data):
        generator = torch.Generator().manual_seed(1)
        path = [here(lstm) + 0.1 * torch.randn(len(here(lstm)), generator=generator) for _ in range(4)]
        far = [100 * each for each in path]
        alone, both = small(lstm, data, path={"a": path}), small(lstm, data, path={"a": path, "b": far})
        np.testing.assert_array_equal(alone.loss, both.loss)
        assert list(both.paths) == ["a", "b", "descent", "descent, clipped"]


class TestDirectionsOfOnesOwn:
    def test_a_linear_head_has_a_quadratic_surface_without_cliffs(self, lstm, data):
        generator = torch.Generator().manual_seed(0)
        first = {"head.weight": torch.randn(1, 5, generator=generator)}
        second = {"head.bias": torch.ones(1)}
        surface = small(lstm, data, directions=(first, second), radius=3.0, points=9)
        assert not surface.cliffs.any()
        # Third differences of a quadratic vanish.
        for axis in (0, 1):
            np.testing.assert_allclose(np.diff(surface.loss, 3, axis), 0, atol=1e-9)
        np.testing.assert_array_equal(surface.x, np.linspace(-3, 3, 9))

    def test_at_any_angle_coordinates_are_multiples(self, lstm, data):
        one, two = torch.ones(5), torch.tensor([1.0, 2, 3, 4, 5])
        pair = [{"head.weight": each.view(1, 5)} for each in (one, two)]
        moved = copy.deepcopy(lstm)
        moved.head.weight.data += 0.5 * one - 0.25 * two
        surface = small(lstm, data, directions=pair, path=[moved.state_dict()], steps=0)
        np.testing.assert_allclose(surface.paths["training"], [(0.5, -0.25)], atol=1e-6)


class TestCliffs:
    def grid(self, function, points=41):
        x = np.linspace(-1, 1, points)
        return function(x[None], x[:, None])

    @pytest.mark.parametrize(
        "function",
        [
            lambda x, y: x**2 + y**2,
            lambda x, y: 1000 * x**2 + y**2,
            lambda x, y: (x + y) ** 2 + 0.01 * (x - y) ** 2,
            lambda x, y: x**4 + y**4,
            lambda x, y: np.sin(3 * x) * np.cos(2 * y),
            lambda x, y: 1e-9 * x + 1e9,
            lambda x, y: 0 * x + 0 * y,
        ],
    )
    def test_smooth_surfaces_have_none(self, function):
        found = cliffs.find(self.grid(function))
        assert not found.marks.any()
        assert found.between is None

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_a_wall_is_marked_on_both_sides_at_any_scale(self, scale):
        found = cliffs.find(scale * self.grid(lambda x, y: (x > 0.32) + 0.1 * x + 0.1 * y) + 5 * scale)
        columns = np.flatnonzero(found.marks.any(0))
        assert columns.tolist() == [26, 27]
        assert found.marks[:, columns].all()
        assert found.height == pytest.approx(1.005 * scale)

    def test_where_numbers_end(self):
        loss = self.grid(lambda x, y: x + y)
        loss[:, 30:] = np.inf
        loss[5, 5] = np.nan
        found = cliffs.find(loss)
        assert np.flatnonzero(found.marks.all(0)).tolist() == [29]
        assert np.argwhere(found.marks[:, :29]).tolist() == [[4, 5], [5, 4], [5, 6], [6, 5]]
        assert math.isinf(found.height)

    def test_a_rugged_surface_has_them(self):
        loss = np.random.default_rng(0).random((41, 41))
        assert cliffs.find(loss).marks.mean() > 0.5


class TestNotFinite:
    @pytest.fixture
    def surface(self, lstm, data):
        pair = {"head.bias": torch.ones(1)}, {"head.weight": torch.ones(1, 5)}
        lstm.head.bias.data.fill_(5.5)

        def loss(output, _):
            return torch.log(output.mean())  # NaN below 0

        return error_surface(
            lstm, data[0], loss=loss, directions=pair, radius=10.0, points=11, progress=False, learning_rate=200.0
        )

    def test_it_stays_in_the_data_and_its_edge_is_a_cliff(self, surface):
        void = np.isnan(surface.loss)
        assert 0 < void.sum() < void.size
        beside = np.pad(void, 1)
        beside = beside[:-2, 1:-1] | beside[2:, 1:-1] | beside[1:-1, :-2] | beside[1:-1, 2:]
        assert (surface.cliffs >= beside & ~void).all()
        assert not (surface.cliffs & void).any()
        assert "not finite" in str(surface)

    def test_descent_ends_there(self, surface):
        losses = surface.path_losses["descent"]
        assert math.isnan(losses[-1])
        assert np.isfinite(losses[:-1]).all()
        assert len(losses) == len(surface.paths["descent"])

    def test_it_is_shown(self, surface):
        assert "loss not finite" in surface.to_svg()

    def test_json_reads_back(self, surface, tmp_path):
        surface.save(tmp_path / "surface.json")
        read = json.loads((tmp_path / "surface.json").read_text())
        np.testing.assert_array_equal(np.array(read["loss"], dtype=float), surface.loss)
        assert read["cliffs"] == surface.cliffs.tolist()
        assert read["axes"] == list(surface.axes)

    def test_a_centre_without_a_loss_is_refused(self, lstm, data):
        with pytest.raises(InputError, match="not finite with the present weights"):
            small(lstm, data, loss=lambda output, _: torch.log(-output.square().mean()))


class TestTheModelIsLeftAlone:
    def test_nothing_of_it_changes(self, lstm, data):
        lstm.train()
        lstm(data[0]).sum().backward()
        before = {name: value.clone() for name, value in lstm.state_dict().items()}
        gradients = [parameter.grad.clone() for parameter in lstm.parameters()]
        state, dtype = torch.get_rng_state(), torch.get_default_dtype()
        small(lstm, data)
        for name, value in lstm.state_dict().items():
            assert torch.equal(value, before[name])
        for parameter, gradient in zip(lstm.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
            assert parameter.requires_grad
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_default_dtype() is dtype
        assert lstm.training

    def test_random_forward_passes_draw_alike_everywhere(self, data):
        class Noisy(LastStep):
            def forward(self, x):
                return super().forward(x + 0.1 * torch.randn_like(x))

        torch.manual_seed(0)
        model = Noisy(nn.GRU(3, 4))
        np.testing.assert_array_equal(small(model, data).loss, small(model, data).loss)

    def test_a_model_that_keeps_a_state_is_refused(self, data):
        class Keeps(LastStep):
            state = None

            def forward(self, x):
                y, self.state = self.rnn(x, self.state)
                return self.head(y[-1])

        with pytest.raises(InputError, match="changes from one call to the next"):
            small(Keeps(recollect.nn.RNN(3, 4)), data)


class TestPicture:
    def test_svg_stands_by_itself(self, default):
        text = default.to_svg()
        root = ET.fromstring(text)
        assert root.get("role") == "img"
        assert "cliffs" in root.get("aria-label")
        for word in ("recurrent weight w", "bias b", "present weights", "descent, clipped", "cliff", "loss"):
            assert word in "".join(root.itertext())
        assert "<script" not in text
        assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
        assert text.count("data:image/png;base64,") == 2

    def test_ids_differ_from_picture_to_picture(self, lstm, data):
        one, two = (small(lstm, data, seed=seed).to_svg() for seed in (0, 1))
        names = [{each.get("id") for each in ET.fromstring(text).iter() if each.get("id")} for text in (one, two)]
        assert names[0]
        assert not names[0] & names[1]

    def test_what_leaves_the_picture_has_an_arrow(self):
        options = {"points": 11, "start": (5.5, -3.2), "steps": 40, "learning_rate": 0.5}
        assert "rotate(" in unit_surface(**options, max_norm=0.1).to_svg().split('class="mark p0" d="M0 0l-11')[1]
        with_none = unit_surface(**options | {"steps": 1}, max_norm=0.1).to_svg()
        assert "M0 0l-11" not in with_none

    def test_losses_over_decades_are_shown_by_their_logarithm(self, lstm, data):
        surface = small(lstm, data, loss=lambda output, target: torch.exp(10 * (output - target).square().mean()))
        assert "1e" in surface.to_svg()

    def test_html(self, tmp_path):
        unit_surface(points=5).to_html(tmp_path / "surface.html")
        page = (tmp_path / "surface.html").read_text(encoding="utf-8")
        assert page.count("<svg") == 1
        assert "img-src data:" in page
        assert "<script" not in page


class TestData:
    def test_csv(self, tmp_path):
        surface = unit_surface(points=5, steps=4)
        surface.save(tmp_path / "surface.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "surface.csv").read_text())))
        grid = [row for row in rows if row["kind"] == "surface"]
        np.testing.assert_array_equal([float(row["loss"]) for row in grid], surface.loss.ravel())
        assert [int(row["cliff"]) for row in grid] == surface.cliffs.ravel().tolist()
        assert (float(grid[1]["x"]), float(grid[1]["y"])) == (surface.x[1], surface.y[0])
        clipped = [row for row in rows if row["kind"] == "descent, clipped"]
        np.testing.assert_array_equal(
            [(float(row["x"]), float(row["y"])) for row in clipped], surface.paths["descent, clipped"]
        )
        assert len(rows) == 25 + 2 * 5

    def test_json_has_everything(self, tmp_path):
        surface = unit_surface(points=5, steps=4)
        surface.save(tmp_path / "surface.json")
        read = json.loads((tmp_path / "surface.json").read_text())
        assert read.keys() == surface.__dataclass_fields__.keys()
        np.testing.assert_array_equal(read["paths"]["descent"], surface.paths["descent"])

    def test_another_ending_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="JSON or CSV"):
            unit_surface(points=3, steps=0).save(tmp_path / "surface.npz")
        assert not list(tmp_path.iterdir())


class TestProgress:
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def test_a_bar_on_a_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("recollect.diagnosis.progress._PATIENCE", 0.0)
        monkeypatch.setattr(sys, "stderr", self.Terminal())
        unit_surface(points=3, steps=0, progress=True)
        assert "error surface" in sys.stderr.getvalue()
        monkeypatch.setattr(sys, "stderr", self.Terminal())
        unit_surface(points=3, steps=0, progress=False)
        assert not sys.stderr.getvalue()

    def test_nothing_elsewhere(self, monkeypatch, capsys):
        monkeypatch.setattr("recollect.diagnosis.progress._PATIENCE", 0.0)
        unit_surface(points=3, steps=0, progress=True)
        assert capsys.readouterr() == ("", "")


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"points": 2}, "points cannot be used"),
            ({"points": 4.5}, "points cannot be used"),
            ({"steps": -1}, "steps cannot be used"),
            ({"radius": 0}, "radius cannot be used"),
            ({"radius": math.inf}, "radius cannot be used"),
            ({"learning_rate": 0.0}, "learning_rate cannot be used"),
            ({"max_norm": -1.0}, "max_norm cannot be used"),
            ({"ranges": ((0, 1), (1, 1))}, "ranges cannot be used"),
            ({"ranges": (0, 1)}, "ranges cannot be used"),
            ({"start": (0.0,)}, "start cannot be used"),
            ({"start": (0.0, math.nan)}, "start cannot be used"),
            ({"directions": "sideways"}, "directions cannot be used"),
            ({"directions": "path"}, "needs a path"),
            ({"directions": ({}, {})}, "neither 0 nor the same"),
            ({"directions": ({"head.bias": torch.ones(1)}, {"head.bias": -torch.ones(1)})}, "neither 0 nor the same"),
            ({"directions": ({"head.bias": torch.ones(1)}, {"nose": torch.ones(1)})}, "names what is no parameter"),
            ({"directions": ({"head.bias": torch.ones(1)}, {"head.weight": torch.ones(1)})}, "does not fit"),
            ({"path": []}, "path cannot be used"),
            ({"path": {}}, "path cannot be used"),
            ({"path": [torch.ones(3)]}, "step 0 of training does not fit"),
            ({"path": [{}]}, "step 0 of training does not fit"),
            ({"path": [3]}, "step 0 of training cannot be used"),
        ],
    )
    def test_arguments(self, lstm, data, options, words):
        with pytest.raises(InputError, match=words):
            small(lstm, data, **options)

    def test_a_path_that_does_not_move(self, lstm, data):
        with pytest.raises(InputError, match="never leaves"):
            small(lstm, data, path=[lstm.state_dict()] * 2)

    def test_a_path_that_broke_down(self, lstm, data):
        broken = {name: value * math.nan for name, value in lstm.state_dict().items()}
        with pytest.raises(InputError, match="step 0 of training holds numbers that are not finite"):
            small(lstm, data, path=[broken])

    def test_what_is_no_model(self, data):
        with pytest.raises(InputError, match="takes a model"):
            small(lambda x: x, data)
