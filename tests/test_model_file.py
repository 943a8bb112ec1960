"""Model files: save and load is identity, and no file can make the reader do anything but read or refuse."""

from __future__ import annotations

import inspect
import json
import pickle
import struct
import subprocess
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import recollect
from recollect import cells, nn
from recollect.errors import ModelFileError
from recollect.model_file import pack_module, read_model, unpack_module, write_model
from recollect.nn.recurrent import Options

HEADER = {"kind": "module", "text": 'é " \\ \u2028', "list": [1, 2.5, None, True], "nested": {"a": {}}}


def arrays():
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.normal(size=(3, 5)),
        "float32": rng.normal(size=7).astype(np.float32),
        "half": np.float16([1.5]),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "integers": np.arange(4),
    }


@recollect.cell(gates="f n", states="h")
def leaky(inp, rec, prev):
    f = torch.sigmoid(inp.f + rec.f)
    return f * prev.h + (1 - f) * torch.tanh(inp.n + rec.n)


MODULES = {
    "LSTM": lambda: nn.LSTM(3, 5, num_layers=2, batch_first=True, dropout=0.25),
    "GRU": lambda: nn.GRU(3, 5, bidirectional=True, bias=False),
    "RNN relu": lambda: nn.RNN(3, 5, nonlinearity="relu", dtype=torch.float64),
    "LSTM with everything": lambda: nn.LSTM(
        3, 5, 2, proj_size=2, recurrent_dropout=0.1, zoneout=(0.2, 0.3), learned_initial_state=True
    ),
    "Recurrent projected": lambda: nn.Recurrent(cells.cifg_lstm, 3, 5, proj_size=2, zoneout=0.1),
    "Recurrent own cell": lambda: nn.Recurrent(leaky, 3, 5, batch_first=True),
    **{
        f"Recurrent {name}": lambda name=name: nn.Recurrent(cells.by_name(name), 3, 5, bidirectional=True)
        for name in cells.__all__
    },
    "Linear": lambda: torch.nn.Linear(3, 5, bias=False),
    "Sequential": lambda: torch.nn.Sequential(
        OrderedDict(recurrent=nn.LSTM(3, 5), head=torch.nn.Sequential(torch.nn.Linear(5, 2)))
    ),
}


def settings(module):
    return {
        (name, key): value
        for name, layer in module.named_modules()
        for key, value in vars(layer).items()
        if not key.startswith("_") and key != "cell"
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


class TestContainer:
    def test_round_trip_is_identity(self, path):
        write_model(path, HEADER, arrays())
        header, tensors = read_model(path)
        assert header == HEADER
        assert tensors.keys() == arrays().keys()
        for name, array in arrays().items():
            assert tensors[name].dtype == array.dtype
            assert tensors[name].shape == array.shape
            np.testing.assert_array_equal(tensors[name], array)

    def test_same_content_gives_the_same_bytes(self, path, tmp_path):
        write_model(path, HEADER, arrays())
        shuffled = dict(reversed(arrays().items()))
        write_model(tmp_path / "again", dict(reversed(HEADER.items())), shuffled)
        assert path.read_bytes() == (tmp_path / "again").read_bytes()

    def test_strided_and_big_endian_arrays_keep_their_values(self, path):
        array = np.arange(12.0).reshape(3, 4)
        write_model(path, HEADER, {"strided": array[:, ::2].T, "big": array.astype(">f8")})
        _, tensors = read_model(path)
        np.testing.assert_array_equal(tensors["strided"], array[:, ::2].T)
        np.testing.assert_array_equal(tensors["big"], array)

    def test_other_readers_see_a_plain_safetensors_file(self, path):
        from safetensors import safe_open

        write_model(path, HEADER, arrays())
        with safe_open(path, "np") as file:
            assert list(file.metadata()) == ["recollect"]
            content = file.metadata()["recollect"]
            np.testing.assert_array_equal(file.get_tensor("matrix"), arrays()["matrix"])
        assert content == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"))

    def test_reading_imports_no_torch(self, path):
        write_model(path, HEADER, arrays())
        code = (
            "import sys; from recollect.model_file import read_model; read_model(sys.argv[1]);"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)

    def test_a_failed_write_leaves_the_old_file(self, path):
        write_model(path, HEADER, arrays())
        before = path.read_bytes()
        with pytest.raises(TypeError):
            write_model(path, {"kind": object()}, arrays())
        assert path.read_bytes() == before


class TestDamage:
    """Whatever happens to the bytes, the reader says ModelFileError; it neither crashes nor believes."""

    @pytest.fixture
    def data(self, path):
        write_model(path, HEADER, arrays())
        return path.read_bytes()

    def test_truncated_anywhere(self, path, data):
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(ModelFileError):
                read_model(path)

    def test_any_byte_changed(self, path, data):
        rng = np.random.default_rng(1)
        for place in rng.permutation(len(data))[:400]:
            altered = bytearray(data)
            altered[place] ^= int(rng.integers(1, 256))
            path.write_bytes(altered)
            with pytest.raises(ModelFileError):
                read_model(path)

    def test_case_and_white_space_of_the_header_changed(self, path, data):
        end = 8 + int.from_bytes(data[:8], "little")
        for place in range(8, end, 3):
            for other in b"\t\n\r ", data[place : place + 1].swapcase():
                for byte in other:
                    altered = bytearray(data)
                    altered[place] = byte
                    if altered != data:
                        path.write_bytes(altered)
                        with pytest.raises(ModelFileError):
                            read_model(path)

    def test_bytes_appended(self, path, data):
        path.write_bytes(data + b"\0")
        with pytest.raises(ModelFileError):
            read_model(path)

    def test_tensors_exchanged(self, path, data):
        other = arrays()
        other["matrix"], other["scalar"] = -other["matrix"], np.array(3.0)
        write_model(path, HEADER, other)
        end = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[:end] + path.read_bytes()[end:])
        with pytest.raises(ModelFileError, match="SHA-256"):
            read_model(path)


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def _safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


FOREIGN = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "text": b"time,y\n1,2\n" * 100,
    "zeros": bytes(1000),
    "no header": _safetensors(b""),
    "header of 2**63 bytes": _safetensors(b"{}", length=2**63),
    "header of 2**64 - 1 bytes": _safetensors(b"{}", length=2**64 - 1),
    "header that is a list": _safetensors(b"[]"),
    "header that nests too deep": _safetensors(b'{"a":' * 100_000),
    "metadata that is no object": _safetensors(b'{"__metadata__":[]}'),
    "metadata that is no text": _safetensors(b'{"__metadata__":{"recollect":1}}'),
    "metadata that is no JSON": _safetensors(b'{"__metadata__":{"recollect":"nonsense"}}'),
    "metadata that is a list": _safetensors(b'{"__metadata__":{"recollect":"[]"}}'),
    "metadata that nests too deep": _safetensors(b'{"__metadata__":{"recollect":"' + b"[" * 100_000 + b'"}}'),
    "tensor of 2**60 rows": _safetensors(
        b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "tensor beyond the end": _safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "unknown dtype": _safetensors(b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
}


class TestForeign:
    @pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
    def test_is_refused(self, path, data):
        path.write_bytes(data)
        with pytest.raises(ModelFileError):
            recollect.load(path)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle_is_never_run(self, path, tmp_path, protocol):
        path.write_bytes(pickle.dumps(_Bomb(tmp_path / "ran"), protocol))
        with pytest.raises(ModelFileError):
            recollect.load(path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_torch_save_is_never_run(self, path, tmp_path, zipped):
        torch.save(_Bomb(tmp_path / "ran"), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelFileError, match="which Recollect never opens"):
            recollect.load(path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"recollect": "{}", "format": "pt"}])
    def test_someone_elses_safetensors(self, path, metadata):
        save_file({"weight": np.zeros(3)}, path, metadata)
        with pytest.raises(ModelFileError, match="did not write"):
            recollect.load(path)

    def test_newer_format(self, path, monkeypatch):
        monkeypatch.setattr("recollect.model_file.container.FORMAT", 2)
        write_model(path, HEADER, arrays())
        monkeypatch.undo()
        with pytest.raises(ModelFileError, match="newer Recollect"):
            read_model(path)

    def test_another_kind(self, path):
        write_model(path, {"kind": "forecaster"}, {})
        with pytest.raises(ModelFileError, match=r"Forecaster\.load"):
            recollect.load(path)

    def test_no_file_is_an_os_error(self, path):
        with pytest.raises(FileNotFoundError):
            recollect.load(path)


class TestModules:
    @pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
    @pytest.mark.parametrize("training", [True, False])
    def test_save_and_load_is_identity(self, path, make, training):
        module = make().train(training)
        recollect.save(module, path)
        loaded = recollect.load(path)
        assert type(loaded) is type(module)
        assert settings(loaded) == settings(module)
        expected = module.state_dict()
        assert list(loaded.state_dict()) == list(expected)
        for name, tensor in loaded.state_dict().items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name])

    def test_a_file_from_before_an_argument_was_there(self):
        header, tensors = pack_module(nn.LSTM(3, 5))
        for key in ("recurrent_dropout", "zoneout", "learned_initial_state", "proj_size", "checkpoint"):
            del header["module"][key]
        layer = unpack_module(header, tensors)
        assert settings(layer) == settings(nn.LSTM(3, 5))

    @pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN relu", "Recurrent own cell", "Recurrent slstm"])
    def test_loaded_layer_computes_the_same_and_trains(self, path, name):
        layer = MODULES[name]().eval()
        recollect.save(layer, path)
        loaded = recollect.load(path)
        dtype = next(layer.parameters()).dtype
        x = torch.randn(4, 6, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
        with recollect.set_backend("reference"):
            expected, _ = layer(x)
            given, _ = loaded(x)
            given.square().sum().backward()
        assert torch.equal(given, expected)
        assert all(parameter.grad is not None for parameter in loaded.parameters())

    def test_own_cell_needs_no_code_on_the_other_side(self, path):
        layer = nn.Recurrent(leaky, 3, 5)
        recollect.save(layer, path)
        cell = recollect.load(path).cell
        assert cell is not leaky
        assert (cell.name, cell.gates, cell.states, cell.vectors) == ("leaky", ("f", "n"), ("h",), ())
        assert cell.graph == leaky.graph

    def test_our_cells_come_back_as_themselves(self, path):
        recollect.save(nn.Recurrent(cells.mgu, 3, 5), path)
        assert recollect.load(path).cell is cells.mgu

    def test_another_cell_under_one_of_our_names_stays_itself(self, path):
        gates, states = " ".join(leaky.gates), " ".join(leaky.states)
        impostor = cells.Cell.from_graph("mgu", gates, states, "", leaky.graph.to_json())
        recollect.save(nn.Recurrent(impostor, 3, 5), path)
        assert recollect.load(path).cell.graph == leaky.graph

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtypes(self, path, dtype):
        layer = nn.GRU(2, 3).to(dtype)
        recollect.save(layer, path)
        for name, tensor in recollect.load(path).state_dict().items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, layer.state_dict()[name])

    def test_frozen_parameters_stay_frozen(self, path):
        layer = nn.LSTM(2, 3)
        layer.weight_hh_l0.requires_grad_(False)
        recollect.save(layer, path)
        frozen = {name: not p.requires_grad for name, p in recollect.load(path).named_parameters()}
        assert frozen == {name: name == "weight_hh_l0" for name, _ in layer.named_parameters()}

    def test_part_of_a_model_in_eval_mode_stays_so(self, path):
        model = torch.nn.Sequential(nn.LSTM(2, 3), torch.nn.Linear(3, 1))
        model[0].eval()
        recollect.save(model, path)
        assert [m.training for m in recollect.load(path).modules()] == [True, False, True]

    def test_unsupported_modules_are_named(self, path):
        class Mine(nn.LSTM):
            pass

        for module, name in [
            (torch.nn.Sequential(nn.LSTM(2, 3), torch.nn.ReLU()), "layer '1' .*ReLU"),
            (torch.nn.LSTM(2, 3), r"convert"),
            (Mine(2, 3), "Mine"),
        ]:
            with pytest.raises(ModelFileError, match=name):
                recollect.save(module, path)
        assert not path.exists()

    def test_shared_weights_are_refused(self, path):
        first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        second.weight = first.weight
        with pytest.raises(ModelFileError, match="share"):
            recollect.save(torch.nn.Sequential(first, second), path)
        with pytest.raises(ModelFileError, match="share"):
            recollect.save(torch.nn.Sequential(first, first), path)

    def test_a_module_with_weights_added_is_refused(self, path):
        layer = torch.nn.Linear(2, 3)
        layer.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
        with pytest.raises(ModelFileError, match="extra"):
            recollect.save(layer, path)


# For each option of a constructor another value than its default, and what that value needs beside it.
OTHER = {
    "num_layers": (3, {}),
    "nonlinearity": ("relu", {}),
    "bias": (False, {}),
    "batch_first": (True, {}),
    "dropout": (0.25, {"num_layers": 2}),
    "bidirectional": (True, {}),
    "proj_size": (2, {}),
    "recurrent_dropout": (0.5, {}),
    "zoneout": ([0.5], {}),
    "learned_initial_state": (True, {}),
    "checkpoint": ("auto", {}),
}
# Not of the layer: where and in which type its weights are made (a file keeps the type with each of them).
OF_THE_WEIGHTS = {"device", "dtype"}
KINDS = {
    nn.RNN: (3, 5),
    nn.LSTM: (3, 5),
    nn.GRU: (3, 5),
    nn.Recurrent: (cells.cifg_lstm, 3, 5),
    torch.nn.Linear: (3, 5),
}


def options(kind):
    """The names of all options of a layer, from its signature and, where that ends in ``**options``, their type."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1 + len(KINDS[kind]) :]
    names = [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(names) < len(parameters):
        names += list(Options.__annotations__)
    return [name for name in names if name not in OF_THE_WEIGHTS]


ALL_OPTIONS = [(kind, name) for kind in KINDS for name in options(kind)]
assert len(ALL_OPTIONS) > 35


REFUSED = {
    "parametrised": (lambda m: parametrizations.weight_norm(m[0], "weight_hh_l0"), "remove_parametrizations"),
    "parametrised Linear": (lambda m: parametrizations.spectral_norm(m[1]), "parametrizations of weight"),
    "old weight_norm": (lambda m: weight_norm(m[1]), "computed from weight_g and weight_v.*remove_weight_norm"),
    "old weight_norm of a recurrent layer": (lambda m: weight_norm(m[0], "weight_hh_l0"), "weight_hh_l0_g"),
    "old spectral_norm": (lambda m: spectral_norm(m[1]), "computed from weight_orig.*remove_spectral_norm"),
    "pruned": (lambda m: prune.random_unstructured(m[1], "weight", 0.5), "computed from weight_orig.*prune.remove"),
    "buffer": (lambda m: m[0].register_buffer("mean", torch.zeros(2)), "buffers: mean"),
    "buffer that is not persistent": (lambda m: m.register_buffer("mean", torch.zeros(2), False), "buffers: mean"),
    "module inside": (lambda m: m[1].add_module("noise", torch.nn.Dropout(0.5)), "modules inside it: noise"),
    "module without weights in a container": (lambda m: m.add_module("noise", torch.nn.Dropout(0.5)), "Dropout"),
    "forward": (lambda m: setattr(m[1], "forward", lambda x: x), "layer '1' .*forward was replaced"),
    "forward of a container": (lambda m: setattr(m, "forward", lambda x: x), "forward was replaced"),
    "another cell": (lambda m: setattr(m[0], "cell", cells.cifg_lstm), "cell = "),
    "another mode": (lambda m: setattr(m[0], "mode", "GRU"), "mode was replaced"),
    "another size": (lambda m: setattr(m[0], "hidden_size", 4), "shape|size"),
    "another probability": (lambda m: setattr(m[0], "zoneout", 0.5), "zoneout|iterable"),
    "a bias less": (lambda m: setattr(m[0], "bias_hh_l0", None), "bias_hh_l0"),
    "weights of two dtypes": (lambda m: m[0].register_parameter(
        "bias_hh_l0", torch.nn.Parameter(torch.zeros(12, dtype=torch.float64))), "several dtypes"),
    "complex weights": (
        lambda m: setattr(m[1], "bias", torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))), "complex64"
    ),
    "weights of eight bits": (lambda m: m[1].to(torch.float8_e4m3fn), "float8"),
    "weights without numbers": (lambda m: m.to("meta"), "meta"),
    "sparse weights": (lambda m: setattr(m[1], "weight", torch.nn.Parameter(m[1].weight.detach().to_sparse())),
                       "sparse"),
    "no layer": (lambda m: m.add_module("2", None), "layer '2' is missing"),
}  # fmt: skip


SAID = {
    "forward hook": (lambda m: m[0].register_forward_hook(print), "the forward hooks of layer '0'"),
    "hook with options": (
        lambda m: m[1].register_forward_pre_hook(print, with_kwargs=True), "the forward pre hooks of layer '1'"
    ),
    "backward hook": (lambda m: m.register_full_backward_hook(print), "the backward hooks of the module"),
    "attribute": (lambda m: setattr(m[0], "note", "mine"), "the attribute note of layer '0'"),
    "attribute of a weight": (
        lambda m: setattr(m[1].weight, "no_decay", True), "the attribute weight.no_decay of layer '1'"
    ),
    "hook of a weight": (lambda m: m[1].weight.register_hook(print), "the hooks of weight of layer '1'"),
}  # fmt: skip


class TestNothingIsLost:
    """A file keeps all of a module, or says what it does not keep, or refuses it."""

    @pytest.mark.parametrize(("kind", "name"), ALL_OPTIONS, ids=lambda value: getattr(value, "__name__", value))
    def test_every_option_of_every_constructor_is_kept(self, path, kind, name):
        value, needed = OTHER[name]
        if name == "zoneout":
            value = value * (1 if kind in (nn.RNN, nn.GRU) else 2)
        module = kind(*KINDS[kind], **{name: value}, **needed)
        recollect.save(module, path)
        loaded = recollect.load(path)
        assert settings(loaded) == settings(module)
        if name != "bias" or kind is not torch.nn.Linear:
            assert getattr(loaded, name) == value != getattr(kind(*KINDS[kind]), name)
        assert repr(loaded) == repr(module)

    @pytest.mark.parametrize("checkpoint", [None, 7, "auto"])
    def test_a_loaded_layer_trains_in_the_same_segments(self, path, checkpoint):
        recollect.save(nn.LSTM(2, 3, checkpoint=checkpoint), path)
        assert recollect.load(path).checkpoint == checkpoint

    @pytest.mark.parametrize("value", [0, -1, True, 2.0, "often", [], 2**70 * 1.0], ids=str)
    def test_segments_that_are_none(self, value):
        header, tensors = pack_module(nn.LSTM(2, 3))
        header["module"]["checkpoint"] = value
        with pytest.raises(ModelFileError):
            unpack_module(header, tensors)

    @pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
    @pytest.mark.parametrize("change", REFUSED)
    def test_what_would_compute_something_else_is_refused_and_nothing_is_written(self, path, change):
        module = torch.nn.Sequential(nn.LSTM(2, 3), torch.nn.Linear(3, 2))
        alter, match = REFUSED[change]
        alter(module)
        with pytest.raises(ModelFileError, match=match):
            recollect.save(module, path)
        assert not path.exists()

    def test_what_a_parametrisation_computed_is_saved_after_its_remedy(self, path):
        layer = parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0")
        expected = layer.weight_hh_l0.detach().clone()
        parametrize.remove_parametrizations(layer, "weight_hh_l0")
        recollect.save(layer, path)
        assert torch.equal(recollect.load(path).weight_hh_l0, expected)

    @pytest.mark.parametrize("change", SAID)
    def test_what_is_left_out_is_said(self, path, change):
        module = torch.nn.Sequential(nn.LSTM(2, 3), torch.nn.Linear(3, 2))
        alter, match = SAID[change]
        alter(module)
        with pytest.warns(UserWarning, match=match) as warned:
            recollect.save(module, path)
        assert [str(warning.filename) for warning in warned] == [__file__]
        assert recollect.load(path)[1].in_features == 3

    def test_what_a_file_keeps_is_saved_without_a_word(self, path):
        module = torch.nn.Sequential(nn.LSTM(2, 3), torch.nn.Linear(3, 2), torch.nn.Sequential())
        module[0].dropout, module[0].zoneout = 0.5, (0.25, 0.5)
        module[1].weight.requires_grad_(False)
        module[1].bias.grad = torch.ones(2)
        module[0].register_load_state_dict_pre_hook(print)
        module[0].eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "dropout option adds dropout")  # of one layer, as torch.nn says
            recollect.save(module, path)
            loaded = recollect.load(path)
        assert settings(loaded)["0", "zoneout"] == [0.25, 0.5]
        assert [part.training for part in loaded.modules()] == [True, False, True, True]
        assert not loaded[1].weight.requires_grad


HUGE = 2**40


class TestLyingHeaders:
    """The digest keeps no liar out, so what a header claims is checked against the tensors."""

    @pytest.mark.parametrize(
        "lie",
        [
            {"hidden_size": 4},
            {"hidden_size": HUGE},
            {"hidden_size": 2**70},
            {"hidden_size": -3},
            {"hidden_size": 3.0},
            {"hidden_size": "3"},
            {"hidden_size": True},
            {"hidden_size": None},
            {"num_layers": 2},
            {"num_layers": HUGE},
            {"num_layers": 0},
            {"bias": False},
            {"bidirectional": True},
            {"dropout": "high"},
            {"dropout": 7.0},
            {"training": None, "device": "cuda"},
            {"type": "Conv1d"},
            {"type": "GRU"},
            {"type": ["LSTM"]},
            {"type": "Sequential"},
            {"type": "Sequential", "layers": [["a.b", {}]]},
        ],
        ids=str,
    )
    def test_layers(self, path, lie):
        header, tensors = pack_module(nn.LSTM(2, 3))
        header["module"] = {**header["module"], **lie}
        write_model(path, {"kind": "module", **header}, tensors)
        with pytest.raises(ModelFileError):
            recollect.load(path)

    @pytest.mark.parametrize(
        "lie",
        [
            {"graph": "{}"},
            {"graph": 3},
            {"graph": leaky.graph.to_json().replace("sigmoid", "system")},
            {"gates": "f n import"},
            {"gates": "f n m"},
            {"states": "h c"},
            {"states": 1},
            {"name": ["a"]},
            {"code": "print()"},
        ],
        ids=str,
    )
    def test_cells(self, path, lie):
        header, tensors = pack_module(nn.Recurrent(leaky, 2, 3))
        header["module"]["cell"] = {**header["module"]["cell"], **lie}
        write_model(path, {"kind": "module", **header}, tensors)
        with pytest.raises(ModelFileError):
            recollect.load(path)

    @pytest.mark.parametrize("module", [None, [], "LSTM", {}, {"type": "LSTM"}], ids=str)
    def test_trees(self, path, module):
        write_model(path, {"kind": "module", "module": module, "frozen": [], "bfloat16": []}, {})
        with pytest.raises(ModelFileError):
            recollect.load(path)

    def test_tree_that_nests_too_deep(self):
        tree = {"type": "Linear", "training": True, "in_features": 1, "out_features": 1, "bias": False}
        for _ in range(5000):
            tree = {"type": "Sequential", "training": True, "layers": [["0", tree]]}
        header = {"module": tree, "frozen": [], "bfloat16": []}
        with pytest.raises(ModelFileError):
            unpack_module(header, {})

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t.pop("bias_hh_l0"),
            lambda t: t.update(more=np.zeros(3, np.float32)),
            lambda t: t.update(bias_hh_l0=np.zeros(5, np.float32)),
            lambda t: t.update(bias_hh_l0=np.zeros((12, 1), np.float32)),
            lambda t: t.update(bias_hh_l0=np.zeros(12, np.int64)),
            lambda t: t.update(bias_hh_l0=np.zeros(12, np.complex64)),
        ],
    )
    def test_tensors(self, path, change):
        header, tensors = pack_module(nn.LSTM(2, 3))
        change(tensors)
        write_model(path, {"kind": "module", **header}, tensors)
        with pytest.raises(ModelFileError):
            recollect.load(path)

    @pytest.mark.parametrize("key", ["frozen", "bfloat16", "module"])
    @pytest.mark.parametrize("value", [None, 3, ["nothing"], [["weight"]], [{}]], ids=str)
    def test_lists(self, path, key, value):
        header, tensors = pack_module(nn.LSTM(2, 3))
        write_model(path, {"kind": "module", **header, key: value}, tensors)
        with pytest.raises(ModelFileError):
            recollect.load(path)
