"""Files made to do harm: whatever one says, its readers refuse it with an error of ours or load it, and do no more work
and take no more memory than its size is worth. The digest keeps no liar out, so all of these carry a right one."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

import recollect
from recollect import nn
from recollect.errors import InputError, ModelFileError
from recollect.model_file import pack_module, write_model
from recollect.model_file.container import FORMAT, _digest
from recollect.stream.model import read

# In a process of its own, so that it can be given little time and memory: beyond either it is killed, and fails.
LIMITS = """
import resource, sys
import torch, recollect
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
"""
NAMES = " ".join(f"g{number}" for number in range(100_000))


def refused(path, match=None):
    """By the reader that builds modules, and by the one that needs no torch."""
    for load in (recollect.load, read):
        with pytest.raises((ModelFileError, InputError), match=match):
            load(path)


def written(path, module, change):
    header, tensors = pack_module(module)
    change(header["module"], tensors)
    write_model(path, {"kind": "module", **header}, tensors)
    return path


def chain(op, length):
    nodes = [["leaf", [], "inp.a"], ["leaf", [], "rec.a"], ["add", [0, 1], None]]
    nodes += [[op, [place + 2] * (2 if op == "mul" else 1), None] for place in range(length)]
    return json.dumps({"format": 1, "nodes": nodes, "outputs": [["h", length + 2]], "names": []})


def cell_of(**changes):
    def change(module, tensors):
        module["cell"].update(changes)

    return change


def many_layers(module, tensors):
    """Each of many layers says that it is as deep as the file has tensors."""
    tensors.update({f"x{number}": np.zeros(1, np.float32) for number in range(500)})
    layer = {**module, "num_layers": 500}
    module.clear()
    layers = [[str(number), layer] for number in range(500)]
    module.update(type="Sequential", training=True, layers=layers)


def long_paths(module, tensors):
    empty = {"type": "Sequential", "training": True, "layers": []}
    inner = {**empty, "layers": [[str(number), empty] for number in range(5_000)]}
    layer = dict(module)
    module.clear()
    module.update(type="Sequential", training=True, layers=[["a" * 100_000, inner], ["0", layer]])


LIES = {
    "100,000 gates": (cell_of(gates=NAMES), "too many gates"),
    "100,000 vectors": (cell_of(vectors=NAMES), "too many vectors"),
    "1,000 tanh": (cell_of(graph=chain("tanh", 1_000)), "too large to be compiled"),
    "10,000 products": (cell_of(graph=chain("mul", 10_000)), "too large"),
    "names that look alike": (cell_of(gates="ﬁ fi"), "'fi' twice"),
    "a name in two spellings": (
        cell_of(gates="fi", graph=chain("tanh", 1).replace(".a", ".ﬁ")), "wrong arguments"
    ),
    "a float64 among float32": (
        lambda module, tensors: tensors.update(bias_hh_l0=tensors["bias_hh_l0"].astype(np.float64)), "dtype"
    ),
    "layers without tensors": (many_layers, "no tensor|weight_ih_l0"),
    "long paths": (long_paths, "too long"),
}  # fmt: skip


@recollect.cell(gates="a", states="h")
def simple(inp, rec, prev):
    return torch.tanh(inp.a + rec.a)


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_asks_for_too_much_or_contradicts_itself_is_refused_at_once(tmp_path, lie):
    change, match = LIES[lie]
    refused(written(tmp_path / "model", nn.Recurrent(simple, 2, 3), change), match)


def test_a_part_in_float64_beside_one_in_float32_is_no_contradiction(tmp_path):
    module = torch.nn.Sequential(nn.LSTM(2, 3), torch.nn.Linear(3, 1, dtype=torch.float64))
    recollect.save(module, tmp_path / "model")
    assert [p.dtype for p in recollect.load(tmp_path / "model")[1].parameters()] == [torch.float64] * 2


def test_bits_of_another_type_are_not_taken_for_bfloat16(tmp_path):
    header, tensors = pack_module(nn.GRU(2, 3).half())
    write_model(tmp_path / "model", {"kind": "module", **header, "bfloat16": ["bias_hh_l0"]}, tensors)
    with pytest.raises(ModelFileError, match="not the bits of bfloat16"):
        recollect.load(tmp_path / "model")


def test_no_depth_of_a_header_is_too_deep_for_our_error(tmp_path):
    """Up to some depth JSON is read, beyond it is not; in between it may be read and not be written again."""
    path, before, loaded = tmp_path / "model", sys.getrecursionlimit(), set()  # which tests of others may have raised
    header, tensors = pack_module(torch.nn.Linear(1, 1))
    write_model(path, {"kind": "module", **header, "deep": 0}, tensors)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    for depth in (1, *range(910, 1_000)):
        sys.setrecursionlimit(10_000)
        try:
            deep = json.loads("[" * depth + "]" * depth)
            content = {"kind": "module", **header, "deep": deep, "format": FORMAT}
            content["sha256"] = _digest(content, tensors)
            container = json.loads(data[8:end])
            text = json.dumps(content, sort_keys=True, separators=(",", ":"))
            container["__metadata__"] = {"recollect": text}
        finally:
            sys.setrecursionlimit(before)
        head = json.dumps(container, separators=(",", ":")).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + data[end:])
        sys.setrecursionlimit(1_000)
        try:
            for load in (recollect.load, read):
                with contextlib.suppress(ModelFileError):
                    load(path)
                    loaded.add(depth)
        finally:
            sys.setrecursionlimit(before)
    assert 1 in loaded
    assert 999 not in loaded


FUZZ = """
import hashlib, json, random, warnings
from pathlib import Path
import numpy as np
from recollect import nn
from recollect.errors import RecollectError, ModelFileError, GraphError, CellError, InputError, NotYetError
from recollect.model_file import pack_module, write_model
from recollect.stream import Stepper, snapshot
from recollect.stream.model import read

warnings.simplefilter("ignore")  # of dropout for one layer, as torch.nn's layers say
path, draw = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
ours = (ModelFileError, GraphError, CellError, InputError, NotYetError)

@recollect.cell(gates="f n", states="h c", vectors="p")
def own(inp, rec, prev, vec):
    f = torch.sigmoid(inp.f + rec.f)
    c = torch.where(inp.n > 0, f * prev.c + vec.p, 2.5)
    return torch.tanh(c) ** 1.7, c

MODULES = [nn.LSTM(2, 3), nn.Recurrent(own, 2, 3, 2, checkpoint=4, zoneout=0.1), nn.LSTM(2, 4, proj_size=2),
           torch.nn.Sequential(nn.GRU(2, 3), torch.nn.Sequential(torch.nn.Linear(3, 2))),
           nn.RNN(2, 2, bidirectional=True).to(torch.bfloat16)]
PACKED = [pack_module(module) for module in MODULES]
JUNK = [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, 1.5, -0.0, 1e308, "", "x", "ﬁ", "inf", "h",
        "i f g o", [], {}, [[]], [None], {"a": 1}, "leaf", "LSTM", "Sequential", "Linear", "\\ud800", ["weight"], [1.0]]

def places(tree):
    waiting, found = [tree], []
    while waiting:
        box = waiting.pop()
        keys = list(box) if isinstance(box, dict) else range(len(box))
        found += [(box, key) for key in keys]
        waiting += [box[key] for key in keys if isinstance(box[key], dict | list)]
    return found

def mutated(tree):
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.choice([1, 1, 2])):
        if not (where := places(tree)):
            return tree
        box, key = draw.choice(where)
        match draw.randrange(8):
            case 0 if isinstance(box, dict):
                del box[key]
            case 1 if isinstance(box, list):
                box.insert(key, box[key])
            case 2 if isinstance(box[key], list):
                box[key] = box[key] * draw.choice([2, 30])
            case 3:
                for _ in range(draw.choice([3, 600])):
                    box[key] = [box[key]]
            case 4 if isinstance(box[key], str) and box[key].startswith("{"):
                box[key] = json.dumps(mutated(json.loads(box[key])))
            case 5 if isinstance(box[key], str) and box[key]:
                at = draw.randrange(len(box[key]))
                box[key] = box[key][:at] + draw.choice("aﬁ,[]{}0-9.e ") + box[key][at + 1 :]
            case 6 if type(box[key]) in (int, float):
                box[key] *= draw.choice([-1, 2, 10**6, 0.5])
            case _:
                box[key] = draw.choice(JUNK)
    return tree

def retyped(array):
    return draw.choice([array.astype(np.float64), array.astype(np.int16), array[:0], array.ravel(), array != 0,
                        np.zeros((0, 2**20), np.float32), np.float32(3.0).reshape(())])

counts = {"loaded": 0, "refused": 0}
for _ in range(90):
    header, tensors = draw.choice(PACKED)
    header, tensors = mutated(header), dict(tensors)
    if draw.random() < 0.2:
        name = draw.choice(list(tensors))
        tensors[draw.choice([name, "x"])] = retyped(tensors.pop(name))
    try:
        write_model(path, {"kind": "module", **header}, tensors)
    except (TypeError, ValueError, RecursionError):  # nothing that JSON or the container can hold
        continue
    if draw.random() < 0.1:
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    for load in (recollect.load, read):
        try:
            load(path)
            counts["loaded"] += 1
        except ours:
            counts["refused"] += 1
assert min(counts.values()) > 20, counts

for module in (MODULES[0], torch.nn.Linear(2, 2)):
    recollect.save(module, path)
    model = read(path)
    count = int(draw.random() * 4) + 1
    states = [np.zeros((count, 3), np.float32)] * 2 if module is MODULES[0] else []
    good = snapshot.pack(model, count, 2, states)
    for _ in range(100):
        body = bytearray(good[:-32])
        at = draw.randrange(len(body) // 8) * 8
        body[at : at + 8] = draw.choice([bytes(8), b"\\xff" * 8, draw.randbytes(8), (2**40).to_bytes(8, "little")])
        body = body[: draw.choice([len(body), draw.randrange(len(body))])]

        try:
            found = snapshot.unpack(model, bytes(body) + hashlib.sha256(body).digest())
            assert sum(array.nbytes for array in found[2]) <= len(body)
        except InputError:
            pass
print("done")
"""


@pytest.mark.parametrize("seed", [0])
def test_no_change_of_a_file_or_snapshot_does_more_than_be_refused(tmp_path, seed):
    command = [sys.executable, "-c", LIMITS + FUZZ, str(tmp_path / "model"), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "done\n"
