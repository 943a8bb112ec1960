"""Step by step is what the module says of the whole sequence; whatever cannot be, is refused before anything moves."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import recollect
from recollect import cells, nn
from recollect.engine.llvm import chain
from recollect.errors import InputError, ModelFileError, NotYetError
from recollect.model_file import pack_module, write_model
from recollect.stream import Stepper
from tolerances import assert_equal


@recollect.cell(gates="f n", states="h")
def leaky(inp, rec, prev):
    f = torch.sigmoid(inp.f + rec.f)
    return f * prev.h + (1 - f) * torch.tanh(inp.n + rec.n)


@pytest.fixture
def load(tmp_path):
    def saved(module):
        recollect.save(module, tmp_path / "model.safetensors")
        return Stepper.load(tmp_path / "model.safetensors")

    return saved


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def run(module, x):
    """The module in eval mode on the llvm backend: [T, B, O]."""
    with torch.no_grad(), recollect.set_backend("llvm"):
        return module.eval()(x)[0]


def steps(stepper, x):
    return torch.from_numpy(np.stack([stepper.step(each.numpy()) for each in x]))


def trained(module):
    """With weights that do not lie around 0, initial states too."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


LAYERS = {
    **{name: lambda d, name=name: nn.Recurrent(cells.by_name(name), 3, 5, dtype=d) for name in cells.__all__},
    "own cell": lambda d: nn.Recurrent(leaky, 3, 17, dtype=d),
    "no bias": lambda d: nn.LSTM(3, 16, bias=False, dtype=d),
    "three layers": lambda d: nn.LSTM(3, 33, num_layers=3, dropout=0.5, dtype=d),
    "learned initial state": lambda d: nn.GRU(3, 8, num_layers=2, learned_initial_state=True, dtype=d),
    "zoneout": lambda d: nn.LSTM(3, 9, zoneout=(0.2, 0.1), dtype=d),
    "recurrent dropout": lambda d: nn.LSTM(3, 9, recurrent_dropout=0.3, batch_first=True, dtype=d),
    "one unit": lambda d: nn.RNN(1, 1, dtype=d),
    "wide": lambda d: nn.LSTM(130, 64, dtype=d),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_step_equals_the_module_to_the_bit(load, name, dtype):
    module = trained(LAYERS[name](dtype))
    stepper = load(module)
    x = numbers(7, 5, module.input_size, dtype=dtype)
    expected = run(module, x.transpose(0, 1)).transpose(0, 1) if module.batch_first else run(module, x)
    assert torch.equal(steps(stepper, x), expected)
    stepper.reset()
    single = steps(stepper, x[:, 2])
    assert single.shape == (7, module.hidden_size)
    assert torch.equal(single, expected[:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_and_linear_heads_in_their_order(load, dtype):
    lstm, gru = nn.LSTM(3, 20, num_layers=2, dtype=dtype), nn.GRU(6, 7, dtype=dtype)
    between, head = torch.nn.Linear(20, 6, bias=False, dtype=dtype), torch.nn.Linear(7, 2, dtype=dtype)
    inner = torch.nn.Sequential(gru, torch.nn.Sequential(head))
    stepper = load(trained(torch.nn.Sequential(lstm, between, inner)))
    assert (stepper.input_size, stepper.output_size, stepper.dtype) == (3, 2, np.dtype(str(dtype)[6:]))
    x = numbers(9, 4, 3, dtype=dtype)
    with torch.no_grad():
        expected = head(run(gru, between(run(lstm, x))))
    found = steps(stepper, x)
    assert found.shape == (9, 4, 2)
    assert_equal(found, expected)


def test_a_linear_model_alone(load):
    head = trained(torch.nn.Linear(3, 40))
    x = numbers(2, 5, 3)
    with torch.no_grad():
        assert_equal(steps(load(head), x), head(x))


def test_many_streams(load):
    module = trained(nn.LSTM(16, 64))
    x = numbers(3, 256, 16)
    assert torch.equal(steps(load(module), x), run(module, x))


def test_nan_and_infinities_flow_as_in_the_module(load):
    module = trained(nn.GRU(3, 5))
    x = numbers(6, 4, 3)
    x[2, 0, 0], x[2, 1, 1], x[3, 2, 2] = torch.nan, torch.inf, -torch.inf
    found = steps(load(module), x)
    np.testing.assert_array_equal(found.numpy(), run(module, x).numpy())
    assert found[:2].isfinite().all()
    assert found[2:, 0].isnan().all()
    assert found[:, 3].isfinite().all()


class TestInput:
    X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

    @pytest.fixture
    def stepper(self, load):
        return load(trained(nn.LSTM(3, 5)))

    @pytest.mark.parametrize(
        "given",
        [
            X.astype(np.float64), X.astype(">f4"), np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2],
            X.tolist(), torch.from_numpy(X), list(X), np.lib.stride_tricks.as_strided(X),
        ],
        ids=["float64", "big-endian", "columns", "strided", "lists", "torch", "rows", "view"],
    )  # fmt: skip
    def test_whatever_holds_the_same_numbers_is_the_same(self, stepper, given):
        first, second = stepper.step(self.X), stepper.step(self.X)
        stepper.reset()
        np.testing.assert_array_equal(stepper.step(given), first)
        np.testing.assert_array_equal(stepper.step(given), second)

    def test_an_array_that_is_not_aligned(self, stepper):
        memory = np.zeros(self.X.nbytes + 1, np.uint8)
        crooked = memory[1:].view(np.float32).reshape(self.X.shape)
        crooked[:] = self.X
        assert not crooked.flags.aligned
        first = stepper.step(self.X)
        stepper.reset()
        np.testing.assert_array_equal(stepper.step(crooked), first)

    def test_a_subclass_of_arrays_is_converted(self, stepper):
        class Mine(np.ndarray):
            pass

        first = stepper.step(self.X)
        again = stepper.step(self.X.view(Mine))
        assert type(first) is type(again) is np.ndarray

    def test_integers_and_truth_values_are_numbers(self, stepper):
        first = stepper.step(np.array([1, 0, 1]))
        stepper.reset()
        np.testing.assert_array_equal(stepper.step([True, False, True]), first)

    def test_what_is_too_large_for_float32_is_infinite_as_in_torch(self, stepper):
        assert np.isfinite(stepper.step([1e300, 0.0, 0.0])).all()

    @pytest.mark.parametrize(
        "given",
        [
            None, "abc", ["a", "b", "c"], [1j, 2, 3], [[1, 2, 3], [1, 2]], object(), np.zeros(4), np.zeros((4, 2)),
            np.zeros((2, 2, 3)), np.float32(1), np.zeros((0, 3)), np.array([None, 1, 2]), np.zeros(3, "M8[s]"),
        ],
    )  # fmt: skip
    def test_what_is_no_input_is_refused_and_nothing_moves(self, stepper, given):
        with pytest.raises(InputError):
            stepper.step(given)
        assert stepper.streams is None
        first = stepper.step(self.X)
        before = stepper.snapshot()
        for _ in range(2):
            with pytest.raises(InputError):
                stepper.step(given)
        assert stepper.snapshot() == before
        stepper.reset()
        np.testing.assert_array_equal(stepper.step(self.X), first)

    def test_another_number_of_streams_is_refused_and_reset_allows_it(self, stepper):
        stepper.step(self.X)
        for other in (self.X[:2], self.X[0], self.X[:1]):
            with pytest.raises(InputError, match=r"remedy: call reset\(\)"):
                stepper.step(other)
        stepper.reset()
        assert stepper.streams is None
        assert stepper.step(self.X[0]).shape == (5,)
        assert stepper.streams == 1
        with pytest.raises(InputError, match=r"reset\(\)"):
            stepper.step(self.X[:1])

    def test_the_output_is_the_callers_own(self, stepper):
        first = stepper.step(self.X)
        kept = first.copy()
        second = stepper.step(self.X)
        np.testing.assert_array_equal(first, kept)
        first[:] = np.nan
        assert np.isfinite(second).all()
        assert np.isfinite(stepper.step(self.X)).all()
        assert first.flags.owndata

    def test_wrong_numbers_of_arguments(self, stepper):
        with pytest.raises(TypeError):
            stepper.step()
        with pytest.raises(TypeError):
            stepper.step(self.X, self.X)


class TestReset:
    X = numbers(6, 4, 3).numpy()

    @pytest.fixture
    def stepper(self, load):
        return load(trained(nn.GRU(3, 5, num_layers=2, learned_initial_state=True)))

    @pytest.mark.parametrize(
        "streams", [[1, 3], np.array([False, True, False, True]), (3, 1, 1), np.array([1, 3], np.uint8)], ids=repr
    )
    def test_some_streams_begin_anew_and_the_others_go_on(self, stepper, streams):
        whole = [stepper.step(x) for x in self.X]
        stepper.reset()
        for x in self.X[:3]:
            stepper.step(x)
        stepper.reset(streams)
        found = [stepper.step(x) for x in self.X[3:]]
        stepper.reset()
        fresh = [stepper.step(x) for x in self.X[3:]]
        for step, row in zip(range(3), found, strict=True):
            np.testing.assert_array_equal(row[[0, 2]], whole[3 + step][[0, 2]])
            np.testing.assert_array_equal(row[[1, 3]], fresh[step][[1, 3]])

    def test_one_or_none(self, stepper):
        first = stepper.step(self.X[0])
        stepper.reset(2)
        stepper.reset([])
        second = stepper.step(self.X[0])
        np.testing.assert_array_equal(second[2], first[2])
        assert (second[[0, 1, 3]] != first[[0, 1, 3]]).any()

    @pytest.mark.parametrize("streams", [[4], [-1], 1.5, [True], np.zeros(5, bool), "a", [[0]], True], ids=repr)
    def test_streams_that_there_are_not(self, stepper, streams):
        stepper.step(self.X[0])
        before = stepper.snapshot()
        with pytest.raises(InputError, match="no such streams"):
            stepper.reset(streams)
        assert stepper.snapshot() == before

    def test_before_the_first_step_there_are_none(self, stepper):
        with pytest.raises(InputError, match="no streams yet"):
            stepper.reset(0)


class TestRefused:
    def test_a_layer_that_reads_the_future(self, load):
        with pytest.raises(InputError, match=r"step by step.*bidirectional=False"):
            load(nn.GRU(3, 5, bidirectional=True))

    def test_a_projection(self, load):
        with pytest.raises(NotYetError, match="'0' projects"):
            load(torch.nn.Sequential(nn.LSTM(3, 5, proj_size=2)))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision(self, load, dtype):
        with pytest.raises(InputError, match=str(dtype)[6:]):
            load(nn.LSTM(3, 5).to(dtype))

    def test_layers_that_do_not_follow(self, load):
        with pytest.raises(InputError, match="5 features, then a layer for 4"):
            load(torch.nn.Sequential(nn.LSTM(3, 5), torch.nn.Linear(4, 1)))
        with pytest.raises(InputError, match="one dtype"):
            load(torch.nn.Sequential(nn.LSTM(3, 5), torch.nn.Linear(5, 1).double()))
        with pytest.raises(InputError, match="no layers"):
            load(torch.nn.Sequential())

    def test_a_forecaster_whose_scale_is_each_windows_own(self, tmp_path):
        model = recollect.Forecaster(context_length=4, hidden_size=3, epochs=1).fit(np.arange(40.0))
        model.save(tmp_path / "m")
        with pytest.raises(InputError, match=r"remedy: recollect\.Forecaster\.load\(path\)\.predict"):
            Stepper.load(tmp_path / "m")

    def test_another_kind_of_file(self, tmp_path):
        write_model(tmp_path / "m", {"kind": "checkpoint"}, {"w": np.zeros(3)})
        with pytest.raises(ModelFileError, match="another kind"):
            Stepper.load(tmp_path / "m")
        with pytest.raises(FileNotFoundError):
            Stepper.load(tmp_path / "nothing")
        (tmp_path / "m").write_bytes(b"123456789" * 9)
        with pytest.raises(ModelFileError):
            Stepper.load(tmp_path / "m")

    @pytest.mark.parametrize(
        "lie",
        [
            {"hidden_size": 4}, {"hidden_size": 2**40}, {"hidden_size": -3}, {"hidden_size": 0}, {"hidden_size": True},
            {"num_layers": 2}, {"num_layers": 0}, {"num_layers": 2**40}, {"bias": False}, {"type": "Conv1d"},
            {"type": "Linear"}, {"type": ["LSTM"]}, {"type": "Sequential"}, {"type": "Sequential", "layers": [[1, {}]]},
            {"cell": None}, {"cell": {}}, {"zoneout": [0.5]}, {"zoneout": [2.0, 0.0]}, {"zoneout": [[], 0.0]},
            {"learned_initial_state": True}, {"proj_size": -1.0},
        ],
        ids=str,
    )  # fmt: skip
    def test_headers_that_lie(self, tmp_path, lie):
        header, tensors = pack_module(nn.LSTM(2, 3))
        header["module"] |= lie
        write_model(tmp_path / "m", {"kind": "module", **header}, tensors)
        with pytest.raises(ModelFileError):
            Stepper.load(tmp_path / "m")

    @pytest.mark.parametrize(
        "lie",
        [
            {"graph": "{}"}, {"graph": 3}, {"gates": "f n m"}, {"gates": "f"}, {"states": "h c"}, {"name": ["a"]},
            {"graph": leaky.graph.to_json().replace("sigmoid", "system")}, {"code": "print()"}, {"vectors": "v"},
        ],
        ids=str,
    )  # fmt: skip
    def test_cells_that_lie(self, tmp_path, lie):
        header, tensors = pack_module(nn.Recurrent(leaky, 2, 3))
        header["module"]["cell"] |= lie
        write_model(tmp_path / "m", {"kind": "module", **header}, tensors)
        with pytest.raises(ModelFileError):
            Stepper.load(tmp_path / "m")

    @pytest.mark.parametrize("module", [None, [], "LSTM", {}, {"type": "LSTM"}], ids=str)
    def test_trees_that_lie(self, tmp_path, module):
        header = {"kind": "module", "module": module, "frozen": [], "bfloat16": []}
        write_model(tmp_path / "m", header, {"w": np.ones(1)})
        with pytest.raises(ModelFileError):
            Stepper.load(tmp_path / "m")


def test_it_serves_where_arrays_cannot_be_looked_into(load, monkeypatch):
    monkeypatch.setattr(chain, "sees_arrays", lambda: False)
    module = trained(nn.LSTM(3, 5))
    stepper = load(module)
    x = numbers(4, 2, 3)
    assert torch.equal(steps(stepper, x), run(module, x))
    assert stepper._call(x[0].numpy()) is None


def test_arrays_can_be_looked_into_here():
    assert chain.sees_arrays()


def test_a_file_from_before_zoneout_was_there(tmp_path):
    header, tensors = pack_module(nn.LSTM(3, 5))
    for key in ("recurrent_dropout", "zoneout", "learned_initial_state", "proj_size"):
        del header["module"][key]
    write_model(tmp_path / "m", {"kind": "module", **header}, tensors)
    assert Stepper.load(tmp_path / "m").step(np.zeros(3)).shape == (5,)


def test_threads_that_share_a_stepper_step_one_after_the_other(load):
    """A counter as a cell: were a step lost or torn, the units would not have counted the steps."""

    @recollect.cell(gates="a", states="h c")
    def counter(inp, rec, prev):
        c = prev.c + 1 + 0 * inp.a
        return c, c

    stepper = load(nn.Recurrent(counter, 1, 40))
    x = np.zeros((3, 1), np.float32)
    stepper.step(x)
    rounds, found = 3000, []

    def work():
        mine = [stepper.step(x) for _ in range(rounds)]
        found.append(np.array(mine))

    def look():
        for _ in range(300):
            stepper.restore(stepper.snapshot())  # between two steps, or a step would be lost

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    counts = np.sort(np.concatenate(found)[:, 0, 0])
    np.testing.assert_array_equal(counts, np.arange(2, 4 * rounds + 2))
    assert (np.concatenate(found) == np.concatenate(found)[:, :1, :1]).all()


def test_threads_that_take_snapshots_of_a_running_stepper_see_whole_steps(load):
    @recollect.cell(gates="a", states="h c")
    def counter(inp, rec, prev):
        c = prev.c + 1 + 0 * inp.a
        return c, c

    module = nn.Recurrent(counter, 1, 500, num_layers=2)
    with torch.no_grad():
        module.weight_ih_l1.zero_()
    stepper = load(module)
    x = np.zeros((3, 1), np.float32)
    stepper.step(x)
    done, seen = threading.Event(), []

    def look():
        while not done.is_set():
            seen.append(np.frombuffer(stepper.snapshot()[64:-32], np.float32))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(5000):
        stepper.step(x)
    done.set()
    thread.join(60)
    assert seen
    assert all((each == each[0]).all() for each in seen)
