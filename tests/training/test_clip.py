"""Clipping against the formula, against PyTorch, and at the ends of the number range."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recollect.errors import InputError
from recollect.training import Clipped, clip_by_global_norm, clip_by_value


def with_gradient(*gradients):
    parameters = []
    for gradient in gradients:
        gradient = torch.as_tensor(gradient)
        parameters.append(nn.Parameter(torch.zeros_like(gradient)))
        parameters[-1].grad = gradient.clone()
    return parameters


def joined(parameters):
    return torch.cat([p.grad.double().flatten() for p in parameters])


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e3])
def test_equals_torch(max_norm):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(7, 5, generator=generator), torch.randn(11, generator=generator)]
    ours, theirs = with_gradient(*gradients), with_gradient(*gradients)
    clipped = clip_by_global_norm(ours, max_norm)
    norm = nn.utils.clip_grad_norm_(theirs, max_norm)
    assert clipped.norm == pytest.approx(norm.item(), rel=1e-6)
    # torch adds 1e-6 to the norm, here about 7.
    torch.testing.assert_close(joined(ours), joined(theirs), rtol=1e-6, atol=0)


def test_a_known_triangle():
    parameters = with_gradient([3.0, 0.0], [0.0, 4.0])
    assert clip_by_global_norm(parameters, 2.5) == Clipped(norm=5.0, scale=0.5, clipped=True, finite=True)
    assert [p.grad.tolist() for p in parameters] == [[1.5, 0.0], [0.0, 2.0]]


def test_fields_are_python_numbers():
    clipped = clip_by_global_norm(with_gradient([3.0, 4.0]), np.float32(1.0))
    assert [type(field) for field in clipped] == [float, float, bool, bool]
    assert [type(field) for field in clip_by_value(with_gradient([3.0]), 1)] == [float, bool, bool]


@pytest.mark.parametrize("max_norm", [5.0, 5.1, math.inf])
def test_at_scale_one_no_bit_changes(max_norm):
    parameters = with_gradient([3.0, 4.0])
    before = parameters[0].grad
    version = before._version
    assert clip_by_global_norm(parameters, max_norm) == (5.0, 1.0, False, True)
    assert parameters[0].grad is before
    assert before._version == version


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    max_norm=st.floats(1e-3, 1e6),
)
def test_the_limit_holds_and_the_direction_is_kept(values, max_norm):
    exact = np.array(values, dtype=np.float64)
    norm = math.hypot(*values)
    parameters = with_gradient(torch.tensor(values))
    clipped = clip_by_global_norm(parameters, max_norm)
    after = joined(parameters).numpy()
    assert clipped.norm == pytest.approx(norm, rel=1e-12, abs=0)
    assert clipped.scale == (min(1.0, max_norm / clipped.norm) if norm else 1.0)
    assert math.hypot(*after) <= max_norm * (1 + 1e-6)
    # A result that float32 can hold only as a subnormal is right to the spacing of those.
    np.testing.assert_allclose(after, exact * clipped.scale, rtol=1e-6, atol=2e-45)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, 3e38),
        (torch.float32, 1e-45),
        (torch.float64, 1e300),
        (torch.float64, 1e-300),
        (torch.float64, 5e-324),
        (torch.float16, 6e4),
        (torch.bfloat16, 3e38),
    ],
)
def test_norms_at_the_ends_of_the_number_range(dtype, value):
    stored = torch.tensor(value, dtype=dtype)
    parameters = with_gradient(stored.expand(9))
    clipped = clip_by_global_norm(parameters, math.inf)
    assert clipped.norm == pytest.approx(3 * stored.item(), rel=1e-12, abs=0)
    assert clipped.finite


def test_a_tiny_scale_keeps_its_digits():
    # The scale is 1e-41, which float32 can hold only to about four digits.
    parameters = with_gradient([3e38, 2e38], [1e38])
    assert clip_by_global_norm(parameters, 1e-3).clipped
    assert joined(parameters).norm().item() == pytest.approx(1e-3, rel=1e-6)


def test_many_values_do_not_drift():
    # A float32 sum of this many equal squares is off by a part in a thousand.
    value = float(np.float32(0.1))
    clipped = clip_by_global_norm(with_gradient(torch.full((2**22,), 0.1)), math.inf)
    assert clipped.norm == pytest.approx(value * 2**11, rel=1e-9, abs=0)


def test_mixed_dtypes():
    parameters = with_gradient(torch.tensor([2.0]), torch.tensor([3.0]).double(), torch.tensor([6.0]).bfloat16())
    assert clip_by_global_norm(parameters, 3.5) == (7.0, 0.5, True, True)
    assert [p.grad.item() for p in parameters] == [1.0, 1.5, 3.0]


def test_tied_parameters_count_once():
    (parameter,) = with_gradient([3.0, 4.0])
    assert clip_by_global_norm([parameter, parameter], 2.5) == (5.0, 0.5, True, True)
    assert parameter.grad.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("parameters", [[], [nn.Parameter(torch.ones(2))], with_gradient(torch.empty(0, 3))])
def test_nothing_to_clip(parameters):
    assert clip_by_global_norm(parameters, 1.0) == (0.0, 1.0, False, True)
    assert clip_by_value(parameters, 1.0) == (0.0, False, True)


def test_a_single_tensor_and_a_generator_are_taken():
    (parameter,) = with_gradient([[3.0, 4.0]])
    assert clip_by_global_norm(parameter, 1.0).norm == 5.0
    assert clip_by_global_norm((p for p in [parameter]), 0.5).norm == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [clip_by_global_norm, clip_by_value])
def test_gradients_that_are_not_finite_are_dropped_and_the_step_changes_nothing(clip, bad, dtype):
    parameters = with_gradient(torch.ones(3, dtype=dtype), torch.tensor([1.0, bad], dtype=dtype))
    result = clip(parameters, 1.0)
    assert not result.finite
    assert result.clipped
    assert not math.isfinite(result[0])
    assert [p.grad for p in parameters] == [None, None]
    torch.optim.Adam(parameters, lr=1.0, weight_decay=0.1).step()
    assert all((p == 0).all() for p in parameters)


def test_scale_is_zero_when_gradients_are_dropped():
    assert clip_by_global_norm(with_gradient([math.inf]), 1.0) == (math.inf, 0.0, True, False)


def test_a_norm_beyond_float64_is_not_finite():
    clipped = clip_by_global_norm(with_gradient(torch.full((9,), 1.7e308, dtype=torch.float64)), 1.0)
    assert clipped == (math.inf, 0.0, True, False)


@pytest.mark.parametrize("limit", [0, -1.0, math.nan, True, "1", None, torch.tensor(1.0)])
@pytest.mark.parametrize("clip", [clip_by_global_norm, clip_by_value])
def test_bad_limits(clip, limit):
    parameters = with_gradient([3.0, 4.0])
    with pytest.raises(InputError, match="greater than 0"):
        clip(parameters, limit)
    assert parameters[0].grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("gradient", [torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64)])
def test_sparse_and_complex_gradients_are_refused(gradient):
    with pytest.raises(InputError, match="dense, real"):
        clip_by_global_norm(with_gradient(gradient), 1.0)


@given(
    st.lists(st.floats(-(2**20), 2**20, width=32), min_size=1, max_size=20),
    st.floats(2**-10, 2**10, width=32),
)
def test_clip_by_value_equals_torch(values, clip_value):
    ours, theirs = with_gradient(torch.tensor(values)), with_gradient(torch.tensor(values))
    result = clip_by_value(ours, clip_value)
    nn.utils.clip_grad_value_(theirs, clip_value)
    assert torch.equal(ours[0].grad, theirs[0].grad)
    assert result.largest == max(map(abs, values))
    assert result.clipped == (not torch.equal(ours[0].grad, torch.tensor(values)))
