"""Memory that is kept for the next call: bounded, the least recently used goes first, what is in use stays."""

from __future__ import annotations

import gc
import os
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import recollect
from recollect import cells, nn
from recollect.engine import buffers
from recollect.engine.buffers import Buffer, Pool, part_addresses
from recollect.engine.calls import kept_problem
from recollect.engine.llvm.problem import Parts

KIB = 1024


@pytest.fixture
def pool(monkeypatch):
    """One of 64 KiB in place of the process's own."""
    made = Pool(64 * KIB, least=0)
    monkeypatch.setattr(buffers, "_pool", made)
    monkeypatch.setattr(buffers, "_with_scratch", set())
    return made


def lend(kib, dtype=torch.float32):
    return Buffer(dtype, Parts(kib * KIB // dtype.itemsize))


def memory_of(buffer):
    """What the pool keeps of it, as a weak reference; to nothing where it keeps none."""
    kept = (memory for size in buffers._pool._sizes.values() for memory in size if memory.address in buffer.addresses)
    memory = next(kept, None)
    return (lambda: None) if memory is None else weakref.ref(memory)


def lent(*sizes):
    """Lend buffers of these sizes in turn, let go of each at once, and return weak references to their memory."""
    references = []
    for size in sizes:
        buffer = lend(size)
        references.append(memory_of(buffer))
        del buffer
    return references


def alive(references):
    return [reference() is not None for reference in references]


def bytes_of(pool):
    return sum(memory.nbytes for size in pool._sizes.values() for memory in size)


def test_memory_comes_back_for_the_same_size(pool):
    (first,) = lent(8)
    assert pool.idle_bytes == 8 * KIB
    buffer = lend(8)
    assert memory_of(buffer)() is first()
    assert pool.idle_bytes == 0
    assert memory_of(lend(8))() is not first()
    assert lend(8, torch.float64).tensor().dtype == torch.float64


def test_a_loan_lasts_as_long_as_a_view_of_its_tensor(pool):
    buffer = lend(8)
    memory, tensor = memory_of(buffer), buffer.tensor()
    view = tensor[5:9].view(2, 2)
    del buffer, tensor
    assert pool.idle_bytes == 0
    assert memory_of(lend(8))() is not memory()
    del view
    both = lend(8), lend(8)
    assert memory() in {memory_of(buffer)() for buffer in both}


def test_addresses_are_those_of_the_tensor(pool):
    parts = Parts(5, 40, 3)
    buffer = Buffer(torch.float64, parts)
    tensor = buffer.tensor()
    assert len(tensor) == parts.total
    assert buffer.addresses == [tensor[start:].data_ptr() for start in parts.starts]
    assert buffer.addresses[0] % 64 == 0


def test_many_sizes_stay_within_the_limit(pool):
    for size in range(4, 200):
        lent(size)
        assert pool.idle_bytes == bytes_of(pool) <= pool.limit
    assert pool.idle_bytes > 0


def test_the_least_recently_used_goes_first(pool):
    kept = lent(16, 20, 24)
    assert alive(kept) == [True, True, True]
    lent(16)  # used again: now 20 is the oldest
    more = lent(12)
    assert alive([*kept, *more]) == [True, False, True, True]
    more += lent(28)
    assert alive([*kept, *more]) == [True, False, False, True, True]


def test_as_much_is_freed_as_must_be(pool):
    small, large = lent(8, 12, 16), lent(56)
    assert alive(small) == [False, False, False]
    assert alive(large) == [True]


def test_what_exceeds_the_limit_drives_nothing_out(pool):
    kept, too_large = lent(16), lent(80)
    assert alive(kept) == [True]
    assert alive(too_large) == [False]


def test_what_is_in_use_counts_but_is_never_taken_away(pool):
    used = [lend(20) for _ in range(3)]
    for buffer in used:
        buffer.tensor().fill_(3.0)
    for size in (20, 24, 40):
        assert alive(lent(size)) == [False]  # no room beside them
    assert all((buffer.tensor() == 3.0).all() for buffer in used)
    del used, buffer
    assert pool.idle_bytes == bytes_of(pool) == 60 * KIB


def test_memory_that_is_held_for_long_is_passed_over(pool):
    held = [lend(1) for _ in range(8)]
    addresses = {buffer.addresses[0] for buffer in held}
    for _ in range(40):
        assert lend(1).addresses[0] not in addresses
    assert bytes_of(pool) <= 64 * KIB


def test_release_frees_all_but_what_is_in_use(pool):
    kept, used = lent(8, 16), lend(24)
    used.tensor().fill_(3.0)
    assert recollect.release_buffers() == 24 * KIB
    assert alive(kept) == [False, False]
    assert pool.idle_bytes == 0
    assert (used.tensor() == 3.0).all()
    assert recollect.release_buffers() == 0
    del used
    assert recollect.release_buffers() == 24 * KIB


def test_release_between_forward_and_backward_changes_nothing():
    layer, x = nn.LSTM(3, 3), torch.randn(20, 4, 3)
    with recollect.set_backend("llvm"):
        found = []
        for release in (False, True):
            layer.zero_grad()
            y = layer(x)[0]
            if release:
                recollect.release_buffers()
                layer(torch.randn(20, 4, 3))[0].sum().backward()  # memory of the same size, used by another call
                layer.zero_grad()
            y.square().sum().backward()
            found.append([each.grad for each in layer.parameters()])
        del y
        gc.collect()
        assert recollect.release_buffers() > 0
    for mine, true in zip(*found, strict=True):
        assert torch.equal(mine, true)


def test_memory_that_was_kept_elsewhere_is_looked_at():
    parts, own = Parts(4 * KIB), torch.empty(4 * KIB)
    assert part_addresses(own, torch.float32, parts) == [own.data_ptr()]
    for wrong in (own.double(), own[1:], own.view(2, -1), own.repeat(2)[::2], own.to("meta")):
        with pytest.raises(recollect.errors.InputError, match="does not fit the layer"):
            part_addresses(wrong, torch.float32, parts)
    own.untyped_storage().resize_(64)
    with pytest.raises(recollect.errors.InputError, match="does not fit the layer"):
        part_addresses(own, torch.float32, parts)


def test_inference_mode_reaches_no_memory(pool):
    with torch.inference_mode():
        (memory,) = lent(8)
    buffer = lend(8)
    assert memory_of(buffer)() is memory()
    assert not buffer.tensor().is_inference()


def test_threads(pool):
    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for size in torch.randint(4, 40, (300,), generator=generator).tolist():
            buffer = lend(size)
            buffer.tensor().fill_(seed)
            if size % 7 == 0:
                recollect.release_buffers()
            if not (buffer.tensor() == seed).all():
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    gc.collect()
    assert pool.idle_bytes == bytes_of(pool)


# Nothing is left behind ---------------------------------------------------------------------------


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(layer, shapes):
    for steps, batch in shapes:
        x = torch.randn(steps, batch, 3, requires_grad=True)
        lengths = torch.arange(batch) % steps + 1 if batch % 3 == 0 else None
        y, _ = layer(x, lengths=lengths)
        y.sum().backward()
        layer.zero_grad()
        with torch.no_grad():
            layer(x, lengths=lengths)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory is resident")
def test_calls_of_ever_new_shapes_leave_nothing_behind(monkeypatch):
    """After as many as the caches hold, more shapes add neither objects nor memory."""
    monkeypatch.setattr(buffers, "_pool", Pool(2**22))
    layer = nn.Recurrent(cells.lstm, 3, 3)
    shapes = [(steps, batch) for steps in range(20, 60) for batch in range(20, 40)]
    random.Random(0).shuffle(shapes)  # or what the caches hold would grow with the shapes
    with recollect.set_backend("llvm"):
        work(layer, shapes[:400])  # the heap, too, grows until it has room for every order of their sizes
        before = []
        for part in (shapes[400:600], shapes[600:]):
            gc.collect()
            before.append((len(gc.get_objects()), resident()))
            work(layer, part)
        gc.collect()
    objects, memory = zip(*before, (len(gc.get_objects()), resident()), strict=True)
    assert kept_problem.cache_info().currsize <= kept_problem.cache_info().maxsize
    assert objects[-1] - objects[0] < 300, objects
    assert memory[-1] - memory[0] < 4 * 2**20, memory
