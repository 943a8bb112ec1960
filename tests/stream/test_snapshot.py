"""Snapshots: to the bit, in any process; what was damaged or belongs elsewhere is refused, and nothing moves."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch

import recollect
from recollect import nn
from recollect.errors import InputError
from recollect.stream import Stepper

X = np.random.default_rng(0).normal(size=(8, 4, 3)).astype(np.float32)


def save(path, seed=0, hidden=5, dtype=None):
    torch.manual_seed(seed)
    head = torch.nn.Linear(hidden, 2, dtype=dtype)
    recollect.save(torch.nn.Sequential(nn.LSTM(3, hidden, num_layers=2, dtype=dtype), head), path)
    return path


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "model.safetensors")


@pytest.fixture
def stepper(path):
    return Stepper.load(path)


def outputs(stepper, x):
    return np.array([stepper.step(each) for each in x])


@pytest.mark.parametrize("x", [X, X[:, 0], X[:, :1]], ids=["four streams", "one stream", "a batch of one"])
@pytest.mark.parametrize("odd", [0, 1])
def test_a_stepper_goes_on_from_a_snapshot_to_the_bit(stepper, path, x, odd):
    outputs(stepper, x[: 4 + odd])
    memory = stepper.snapshot()
    assert stepper.snapshot() == memory
    expected = outputs(stepper, x[4 + odd :])
    for other in (Stepper.load(path), stepper):
        other.restore(memory)
        assert other.snapshot() == memory
        np.testing.assert_array_equal(outputs(other, x[4 + odd :]), expected)


def test_before_the_first_step(stepper):
    memory = stepper.snapshot()
    first = outputs(stepper, X)
    stepper.restore(memory)
    assert stepper.streams is None
    np.testing.assert_array_equal(outputs(stepper, X), first)


def test_another_number_of_streams_is_taken_from_the_snapshot(stepper):
    stepper.step(X[0])
    memory, four = stepper.snapshot(), outputs(stepper, X[1:])
    stepper.reset()
    stepper.step(X[0, 0])
    stepper.restore(bytearray(memory))
    assert stepper.streams == 4
    np.testing.assert_array_equal(outputs(stepper, X[1:]), four)


def test_nan_with_its_bits_and_signs_of_zero(path):
    stepper = Stepper.load(path)
    stepper.step(X[0])
    memory = bytearray(stepper.snapshot()[:-32])
    memory[64:72] = struct.pack("<II", 0x7FC0BEEF, 0x80000000)
    memory += hashlib.sha256(memory).digest()
    stepper.restore(memory)
    assert stepper.snapshot() == memory


def test_the_format_is_what_its_page_says(stepper):
    stepper.step(X[0])
    memory = stepper.snapshot()
    magic, version, size, _, count, axes = struct.unpack_from("<8sII32sqq", memory)
    assert (magic, version, size, count, axes) == (b"RECSNAP\0", 1, 4, 4, 2)
    assert len(memory) == 96 + 4 * 4 * 5 * 2 * 2
    assert memory[-32:] == hashlib.sha256(memory[:-32]).digest()


def test_states_are_those_of_the_module(path):
    stepper = Stepper.load(path)
    module = recollect.load(path)[0].eval()
    outputs(stepper, X)
    with torch.no_grad(), recollect.set_backend("llvm"):
        _, (h, c) = module(torch.from_numpy(X))
    found = np.frombuffer(stepper.snapshot()[64:-32], "<f4").reshape(2, 2, 4, 5)
    np.testing.assert_array_equal(found, torch.stack([h, c], 1).numpy())


class TestNothingToRemember:
    """Linear layers alone: there are no states whose number the bytes could be checked against."""

    @pytest.fixture
    def linear(self, tmp_path):
        recollect.save(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), tmp_path / "linear")
        return Stepper.load(tmp_path / "linear")

    def test_the_next_step_fixes_the_number_of_streams(self, linear):
        expected = outputs(linear, X)
        memory = linear.snapshot()
        linear.restore(memory)
        assert linear.snapshot() == memory
        assert linear.streams is None
        np.testing.assert_array_equal(outputs(linear, X), expected)

    @pytest.mark.parametrize(("count", "axes"), [(2**40, 2), (2**30, 2), (4, 2), (1, 1)])
    def test_no_bytes_ask_for_memory(self, linear, count, axes):
        linear.step(X[0])
        body = bytearray(linear.snapshot()[:-32])
        struct.pack_into("<qq", body, 48, count, axes)
        with pytest.raises(InputError, match="does not hold what it says"):
            linear.restore(bytes(body) + hashlib.sha256(body).digest())
        assert linear.streams == 4


class TestRefused:
    @pytest.fixture
    def memory(self, stepper):
        stepper.step(X[0])
        return stepper.snapshot()

    def refuse(self, stepper, data, match=None):
        before = stepper.snapshot()
        with pytest.raises(InputError, match=match):
            stepper.restore(data)
        assert stepper.snapshot() == before

    def test_truncated_anywhere(self, stepper, memory):
        for size in range(len(memory)):
            self.refuse(stepper, memory[:size])
        self.refuse(stepper, memory + b"\0")

    def test_any_byte_changed(self, stepper, memory):
        for place in range(len(memory)):
            altered = bytearray(memory)
            altered[place] ^= 1 << place % 8
            self.refuse(stepper, bytes(altered))

    def test_no_bytes(self, stepper):
        for data in (None, "text", 3, [1]):
            self.refuse(stepper, data, "bytes")

    @pytest.mark.parametrize("other", [{"seed": 1}, {"hidden": 6}, {"dtype": torch.float64}], ids=str)
    def test_of_another_model(self, stepper, memory, tmp_path, other):
        foreign = Stepper.load(save(tmp_path / "other", **other))
        foreign.step(X[0])
        self.refuse(foreign, memory, "another model")

    def test_of_another_version(self, stepper, memory):
        self.refuse(stepper, self.signed(memory, 8, "<I", 2), "another version")

    @pytest.mark.parametrize(
        ("place", "kind", "value"),
        [(12, "<I", 8), (48, "<q", 3), (48, "<q", -4), (48, "<q", 2**60), (48, "<q", 0), (56, "<q", 1), (56, "<q", 7)],
    )
    def test_heads_that_lie(self, stepper, memory, place, kind, value):
        self.refuse(stepper, self.signed(memory, place, kind, value), "does not hold what it says")

    @staticmethod
    def signed(memory, place, kind, value):
        body = bytearray(memory[:-32])
        struct.pack_into(kind, body, place, value)
        return bytes(body) + hashlib.sha256(body).digest()
