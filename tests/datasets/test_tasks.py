import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from recollect.datasets import adding, sine_to_cosine
from recollect.errors import InputError


@pytest.mark.parametrize("T", [2, 3, 50])
def test_adding_asks_for_the_sum_of_the_two_marked_numbers(T):
    x, y = adding(200, T, seed=0)
    assert (x.shape, y.shape) == ((200, T, 2), (200, 1))
    assert x.dtype == y.dtype == np.float32
    numbers, markers = x[..., 0], x[..., 1]
    assert ((numbers >= 0) & (numbers <= 1)).all()
    assert np.isin(markers, [0, 1]).all()
    assert_array_equal(markers[:, : T // 2].sum(1), 1)
    assert_array_equal(markers[:, T // 2 :].sum(1), 1)
    assert_allclose((numbers * markers).sum(1, keepdims=True), y, rtol=1e-6)


def test_adding_at_chance_has_the_published_error():
    x, y = adding(100_000, 10, seed=1)
    assert y.mean() == pytest.approx(1, abs=0.01)
    assert ((y - 1) ** 2).mean() == pytest.approx(1 / 6, abs=0.002)
    # Each step of a half is marked equally often.
    assert_allclose(x[..., 1].mean(0), 0.2, atol=0.01)


@pytest.mark.parametrize("task", [adding, sine_to_cosine])
def test_the_seed_decides_everything(task):
    for first, again, other in zip(task(5, 8, seed=3), task(5, 8, seed=3), task(5, 8, seed=4), strict=True):
        assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_sine_to_cosine_is_one_wave_through_all_chunks():
    x, y = sine_to_cosine(7, 9, seed=0, period=12)
    assert x.shape == y.shape == (7, 9, 1, 1)
    assert x.dtype == y.dtype == np.float32
    wave, target = x.ravel().astype(float), y.ravel().astype(float)
    assert_allclose(wave**2 + target**2, 1, atol=1e-6)
    # sin(a + d) = sin a cos d + cos a sin d, from step to step and from chunk to chunk alike.
    turn = 2 * np.pi / 12
    assert_allclose(wave[1:], wave[:-1] * np.cos(turn) + target[:-1] * np.sin(turn), atol=1e-6)
    assert_allclose(wave[12:], wave[:-12], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adding(1, 1, 0), "T >= 2"),
        (lambda: adding(0, 10, 0), "n >= 1"),
        (lambda: sine_to_cosine(1, 0, 0), "T >= 1"),
        (lambda: sine_to_cosine(1, 5, 0, period=2), "period > 2"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
