"""The masks of a call: Philox to the bit, on any machine and any number of threads, from torch's seed."""

from __future__ import annotations

import dataclasses
import math
import platform

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from test_machines import MACHINES
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import recollect
from recollect import nn
from recollect.engine import masks
from recollect.engine.llvm import fixed
from recollect.engine.llvm import masks as kernel
from recollect.engine.llvm.machine import compile_module, host
from recollect.engine.masks import Masks
from tolerances import assert_bits

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

# From Random123's kat_vectors (D. E. Shaw Research): rounds, counter, key, result.
KNOWN = """
7   00000000 00000000 00000000 00000000 00000000 00000000  5f6fb709 0d893f64 4f121f81 4f730a48
7   ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff  5207ddc2 45165e59 4d8ee751 8c52f662
7   243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0  4dfccaba 190a87f0 c47362ba b6b5242a
10  00000000 00000000 00000000 00000000 00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
10  ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
10  243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


# The truth, in NumPy --------------------------------------------------------------------------------


def philox(counter, key, rounds=10):
    """Philox4x32 as the paper has it: four words, each an array, from a counter of four and a key of two."""
    word = np.uint64(0xFFFFFFFF)
    a, b, c, d = (np.asarray(each, dtype=np.uint64) for each in counter)
    for turn in range(rounds):
        key_a, key_c = (np.uint64((k + turn * w) % 2**32) for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        of_a, of_c = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = of_c >> 32 ^ b ^ key_a, of_c & word, of_a >> 32 ^ d ^ key_c, of_a & word
    return a, b, c, d


def words(count, key, mask):
    """The words that decide a mask's numbers."""
    n = np.arange(count)
    block = (n // 32 * 8 + n % 8).astype(np.uint64)
    four = philox((block & 0xFFFFFFFF, block >> 32, mask, 0), (key % 2**32, (key >> 32) % 2**32))
    return np.choose(n % 32 // 8, [np.broadcast_to(each, n.shape) for each in four])


def expected(count, key, mask, probability, value=1.0, dtype=torch.float32):
    drawn = words(count, key, mask) < round(probability * 2**32)
    return torch.from_numpy(drawn) * torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize("line", KNOWN.strip().splitlines())
def test_the_published_vectors(line):
    rounds, *numbers = line.split()
    numbers = [int(number, 16) for number in numbers]
    assert [int(each) for each in philox(numbers[:4], numbers[4:6], int(rounds))] == numbers[6:]


def test_the_kernel_has_a_published_vector():
    """Words are seen through thresholds only: each is the least at which its number is not drawn."""
    for place, line in ((8 * word, KNOWN.strip().splitlines()[3].split()[7 + word]) for word in range(4)):
        for threshold, drawn in ((int(line, 16), 0), (int(line, 16) + 1, 1)):
            assert run(32, 0, 0, threshold)[place] == drawn


# To the bit -----------------------------------------------------------------------------------------


def run(count, key, mask, threshold, dtype=torch.float32):
    """The kernel alone; memory around its numbers stays as it was."""
    out = torch.full((count + 64,), 7.0, dtype=dtype)
    one = int(np.float64(1.0).view(np.int64))
    address = out.data_ptr() + 32 * out.element_size()
    kernel = masks._kernel(dtype, torch.get_num_threads(), masks.team())
    kernel.run(kernel.arguments([address, count, key, mask, threshold, one]))
    assert (out[:32] == 7).all()
    assert (out[32 + count :] == 7).all()
    return out[32 : 32 + count]


COUNTS = (0, 1, 7, 8, 31, 32, 33, 1000, (1 << 16) + 37)
KEYS = (0, 1, -1, 0x0123456789ABCDEF, -(2**63), 2**63 - 1, 0xFFFFFFFF)


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_is_that_of_its_place(threads, dtype):
    torch.set_num_threads(threads)
    for count in COUNTS:
        assert_bits(run(count, KEYS[3], 5, 1 << 30, dtype), expected(count, KEYS[3], 5, 0.25, dtype=dtype))
    for key in KEYS:
        for mask in (0, 1, 2**32 - 1):
            assert_bits(run(100, key, mask, 3 << 30, dtype), expected(100, key, mask, 0.75, dtype=dtype))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the machines are of the x86-64 family")
@DTYPES
@pytest.mark.parametrize("name", ["AVX2 haswell", "SSE2"])
def test_a_lesser_machine_draws_the_same(name, dtype, monkeypatch):
    if "AVX2" in name and host().vector_bytes < 32:
        pytest.skip("this machine has no AVX2")
    monkeypatch.setattr(fixed, "host", lambda: dataclasses.replace(MACHINES[name], triple=""))
    for cached in ("_kernel", "_function"):
        monkeypatch.setattr(masks, cached, getattr(masks, cached).__wrapped__)
    for count in COUNTS:
        assert_bits(run(count, KEYS[3], 5, 1 << 30, dtype), expected(count, KEYS[3], 5, 0.25, dtype=dtype))


@pytest.mark.parametrize("name", MACHINES)
def test_object_code_for_every_machine(name):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    assert compile_module(str(kernel.write("float32").module), MACHINES[name])


@DTYPES
def test_the_masks_of_a_call(dtype):
    given = Masks(torch.zeros(1, dtype=dtype))
    first, second = given.bernoulli((3, 5, 7), 0.3), given.dropout((11, 13), 0.2)
    assert first.dtype == second.dtype == dtype
    assert_bits(first, expected(105, given._key, 0, 0.3, dtype=dtype).view(3, 5, 7))
    assert_bits(second, expected(143, given._key, 1, 0.8, 1 / 0.8, dtype).view(11, 13))


@DTYPES
def test_both_ends_of_the_probabilities(dtype):
    given = Masks(torch.zeros(1, dtype=dtype))
    shape = (1000, 1000)
    assert (given.bernoulli(shape, 0.0) == 0).all()
    assert (given.bernoulli(shape, 1.0) == 1).all()
    assert (given.dropout(shape, 0.0) == 1).all()
    assert (given.dropout(shape, 1.0) == 0).all()


def test_an_empty_mask():
    assert Masks(torch.zeros(1)).bernoulli((3, 0, 5), 0.5).shape == (3, 0, 5)


# The seed -------------------------------------------------------------------------------------------


def drawn_from(seed, like=None):
    torch.manual_seed(seed)
    given = Masks(torch.zeros(1) if like is None else like)
    return [given.bernoulli((4, 50), 0.5), given.dropout((4, 50), 0.5)]


def test_a_seed_decides_all_of_a_call():
    first, again, other = drawn_from(0), drawn_from(0), drawn_from(1)
    for mine, same, different in zip(first, again, other, strict=True):
        assert_bits(mine, same)
        assert not torch.equal(mine, different)
    assert not torch.equal(first[0], Masks(torch.zeros(1)).bernoulli((4, 50), 0.5)), "the generator went on"
    for single, double in zip(first, drawn_from(0, torch.zeros(1, dtype=torch.float64)), strict=True):
        assert_bits(single, double.float())


@pytest.mark.parametrize("options", [{"zoneout": 0.2}, {"recurrent_dropout": 0.2}])
def test_nothing_is_drawn_in_evaluation(options):
    layer = nn.LSTM(3, 5, **options).eval()
    before = torch.get_rng_state()
    layer(torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_backend_has_the_same_masks():
    layer, x = nn.RNN(3, 50, zoneout=0.5, recurrent_dropout=0.5, dtype=torch.float64), torch.ones(6, 4, 3).double()
    found = []
    for backend in ("llvm", "reference"):
        with recollect.set_backend(backend):
            torch.manual_seed(0)
            y = layer(x)[0]
            found.append(y[1:] == y[:-1])  # where a unit was kept
    assert found[0].any()
    assert_bits(*found)


def test_a_default_device_is_not_the_inputs():
    torch.set_default_device("meta")
    try:
        found = drawn_from(0, torch.zeros(1, device="cpu"))
    finally:
        torch.set_default_device(None)
    assert_bits(found[0], drawn_from(0)[0])


# Where torch draws ----------------------------------------------------------------------------------


class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class NothingElse(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def of_torch(like):
    torch.manual_seed(0)
    return [torch.bernoulli(like.new_full((4, 50), 0.5)), torch.nn.functional.dropout(like.new_ones(4, 50), 0.5)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_other_types(dtype):
    like = torch.zeros(1, dtype=dtype)
    for mine, torchs in zip(drawn_from(0, like), of_torch(like), strict=True):
        assert_bits(mine, torchs)


def test_other_devices():
    assert all(each.is_meta for each in drawn_from(0, torch.zeros(1, device="meta")))


def test_dispatch_modes_see_it():
    with Nothing():
        found = drawn_from(0)
    for mine, torchs in zip(found, of_torch(torch.zeros(1)), strict=True):
        assert_bits(mine, torchs)


def test_transforms_decide_about_randomness():
    def draw(x):
        return Masks(x).bernoulli((50,), 0.5)

    torch.manual_seed(0)
    x = torch.zeros(4, 1)
    different = torch.func.vmap(draw, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(draw)(x)


def test_neither_a_function_mode_nor_forward_mode_changes_them():
    with NothingElse(), torch.autograd.forward_ad.dual_level():
        found = drawn_from(0)
    for mine, plain in zip(found, drawn_from(0), strict=True):
        assert_bits(mine, plain)


# Statistics: 5 standard deviations, with seeds that are fixed ------------------------------------------


@pytest.mark.parametrize("probability", [1e-4, 0.1, 0.5, 0.9])
def test_as_often_as_it_says(probability):
    torch.manual_seed(0)
    mask = Masks(torch.zeros(1)).bernoulli((1000, 1000), probability).double()
    assert abs(mask.mean() - probability) < 5 * math.sqrt(probability * (1 - probability) / mask.numel())


def correlation(x, y):
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1])


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_neighbours_know_nothing_of_each_other(probability):
    rows = 512, 1024
    mask = run(math.prod(rows), 0, 0, round(probability * 2**32)).view(rows)
    flat = mask.flatten()
    pairs = {f"{lag} numbers apart": (flat[lag:], flat[:-lag]) for lag in (1, 2, 7, 8, 16, 24, 31, 32, 33, 1024)}
    for bit in (0, 1, 31, 32, 63):
        key = 1 << bit if bit < 63 else -(2**63)
        pairs[f"keys of another bit {bit}"] = (mask, run(mask.numel(), key, 0, round(probability * 2**32)))
    pairs["masks of a call"] = (mask, run(mask.numel(), 0, 1, round(probability * 2**32)))
    for what, (x, y) in pairs.items():
        assert abs(correlation(x, y)) < 5 / math.sqrt(x.numel()), what


def test_words_are_spread_evenly():
    """Chi-squared over 256 classes of the upper and the lower bits: the kernel's words, as the truth above has them."""
    found = words(1 << 18, 0x243F6A8885A308D3, 0)
    for classes in (found >> np.uint64(24), found & np.uint64(255)):
        counts = np.bincount(classes.astype(np.int64), minlength=256)
        chi = ((counts - 1024.0) ** 2 / 1024.0).sum()
        assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
