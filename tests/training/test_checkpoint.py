"""The file: what is no checkpoint of this run is refused before anything changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from resumed_run import regression, weights
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from toy_run import OPTIMIZERS, SCHEDULERS, KillAt, Killed, Toy, assert_same_runs, toy_run

import recollect
from recollect import _files
from recollect.errors import InputError, TrainingError
from recollect.model_file import read_model, write_model
from recollect.training import Checkpoints
from recollect.training.packing import pack, unpack

pytestmark = pytest.mark.usefixtures("same_bits_and_no_wait")


class Tanh(Toy):
    def __init__(self):
        super().__init__()
        self.layers[1] = nn.Tanh()


class Wider(Toy):
    def __init__(self):
        super().__init__()
        self.layers[0] = nn.Linear(7, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "seed: 1 here, 0 there"),
        ({"max_norm": 1.0}, "max norm: 1.0 here, None there"),
        ({"accumulate": 2}, "accumulate: 2 here, 1 there"),
        ({"validation": None}, "validation: False here, True there"),
        ({"scheduler_per": "step"}, "scheduler per: step here, epoch there"),
        ({"batches": [regression(4).tensors] * 3}, "batches in an epoch: 3 here, 4 there"),
        ({"make_model": Tanh}, "class of module 'layers.1': Tanh here, Dropout there"),
        ({"make_model": Wider}, r"layers.0.weight: torch.float32 \[4, 7\] here, torch.float32 \[4, 6\] there"),
        ({"make_optimizer": OPTIMIZERS["Adam"]}, "optimizer: Adam here, SGD there"),
        ({"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)}, "lr in group 0 .*: 0.5 here"),
        ({"make_optimizer": OPTIMIZERS["groups"]}, "group 1 of the optimizer"),
        ({"make_scheduler": None}, "scheduler: None here, StepLR there"),
        ({"make_scheduler": lambda o: lr_scheduler.StepLR(o, 3)}, "step_size of the scheduler: 3 here, 2 there"),
        (
            {"batches": DataLoader(regression(16), 4, shuffle=True, generator=torch.Generator())},
            "random generators: .*batches.sampler.generator",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_anything_changes(tmp_path, arguments, message):
    path = tmp_path / "c"
    same_run = {"make_scheduler": SCHEDULERS["Step"]}
    with pytest.raises(Killed):
        toy_run(checkpoint=Checkpoints(path, every=1), observers=[KillAt(1, 2)], **same_run)
    before = path.read_bytes()
    arguments = {**same_run, **arguments}
    model = arguments.pop("make_model", Toy)()
    untouched = weights(model)
    with pytest.raises(TrainingError, match=f"another run.*{message}.*delete the file"):
        toy_run(make_model=lambda: model, checkpoint=path, **arguments)
    assert weights(model) == untouched
    assert path.read_bytes() == before
    assert_same_runs(toy_run(checkpoint=path, **same_run), toy_run(**same_run))


def damaged(data, tmp_path):
    size = len(data)
    for end in (0, 1, 8, 9, 100, size // 2, size - 1):
        yield data[:end]
    for place in (*range(0, size, size // 40), size - 1):
        yield data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    yield data + b"\0"
    torch.save({"epoch": 1}, tmp_path / "other")
    yield (tmp_path / "other").read_bytes()
    recollect.save(nn.Linear(1, 1), tmp_path / "other")
    yield (tmp_path / "other").read_bytes()
    # Sound files that say something else.
    write_model(tmp_path / "other", {"kind": "checkpoint"}, {})
    yield (tmp_path / "other").read_bytes()
    (tmp_path / "other").write_bytes(data)
    header, tensors = read_model(tmp_path / "other")
    for change in ({"state": []}, {"state": {}}, {"setup": []}, {"state": {"epoch": 0}}):
        write_model(tmp_path / "other", header | change, tensors)
        yield (tmp_path / "other").read_bytes()
    write_model(tmp_path / "other", header, dict(list(tensors.items())[1:]))
    yield (tmp_path / "other").read_bytes()


def test_a_damaged_checkpoint_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "c"
    toy_run(checkpoint=path, epochs=1)
    model = Toy()
    files = list(damaged(path.read_bytes(), tmp_path))
    assert len(files) > 50
    untouched, random_state = weights(model), torch.get_rng_state()
    for data in files:
        path.write_bytes(data)
        with pytest.raises(TrainingError, match="delete"):
            toy_run(make_model=lambda: model, checkpoint=path)
        assert weights(model) == untouched
        assert torch.equal(torch.get_rng_state(), random_state)
        assert path.read_bytes() == data


class Odd(torch.optim.SGD):
    """Its state is not data."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["rule"] = print


class OddLater(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["seen"] = {1, 2}


def test_state_that_no_checkpoint_can_hold(tmp_path):
    model = Toy()
    untouched = weights(model)
    with pytest.raises(TrainingError, match=r"rule in group 0 of the optimizer is builtins\.builtin_function"):
        toy_run(Odd, make_model=lambda: model, checkpoint=tmp_path / "c")
    assert weights(model) == untouched
    assert not (tmp_path / "c").exists()
    with pytest.raises(TrainingError, match=r"optimizer\.state\.0\.seen is builtins\.set"):
        toy_run(lambda p: OddLater(p, lr=0.1), checkpoint=tmp_path / "c", observers=[KillAt(0, 1)])


def test_packing_is_lossless():
    value = {
        0: (1, 2.5, float("inf"), None, True, "text", [-0.0], ()),
        "nested": {"a": torch.arange(3), (1, 2): torch.tensor(1.5, dtype=torch.bfloat16)},
        "nested.a": torch.zeros(0, 2, dtype=torch.float64),
        "bits": torch.tensor([True, False]),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }
    arrays = {}
    tree = json.loads(json.dumps(pack(value, "x", arrays), allow_nan=False))
    found = unpack(tree, arrays)
    assert str(found) == str(value)
    assert found["nested"][1, 2].dtype == torch.bfloat16
    assert len(arrays) == 5


def test_arguments_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="folder that exists"):
        Checkpoints(tmp_path / "nowhere" / "c")
    with pytest.raises(InputError, match="every"):
        Checkpoints(tmp_path / "c", every=0)
    with pytest.raises(InputError, match="folder that exists"):
        toy_run(checkpoint=str(tmp_path / "nowhere" / "c"))


def test_leftovers_of_a_kill_are_swept_and_nothing_else(tmp_path):
    for name in (".c.abc.tmp", ".c2.abc.tmp", ".d.tmp", "c.tmp"):
        (tmp_path / name).touch()
    toy_run(checkpoint=tmp_path / "c", epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"c", ".c2.abc.tmp", ".d.tmp", "c.tmp"}


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_it_counts(tmp_path, monkeypatch):
    events = []
    sync, replace = _files.os.fsync, _files.os.replace

    def record_sync(handle):
        events.append("sync folder" if Path(f"/proc/self/fd/{handle}").resolve() == tmp_path else "sync file")
        sync(handle)

    monkeypatch.setattr(_files.os, "fsync", record_sync)
    monkeypatch.setattr(_files.os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    _files.write_atomically(tmp_path / "c", b"data")
    assert events == ["sync file", "rename", "sync folder"]
