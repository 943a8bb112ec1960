"""How a torch.nn.Module is trained, watched and given other parameters, on our six classes as on torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from against_torch import (
    H,
    P,
    assert_same,
    assert_same_bits,
    assert_same_results,
    big,
    drawn,
    given,
    kinds,
    make,
    modules,
    pair,
    projections_warn,
    start,
    suffix,
    tensors,
)
from recollect import nn
from tolerances import GRADIENT, assert_equal

pytestmark = projections_warn

# ---------------------------------------------------------------- training


@modules
def test_frozen_parameters(kind, step):
    """``requires_grad_(False)``: no graph; of one parameter: no gradient there and the right one elsewhere."""
    ours, theirs = pair(kind, step=step, dtype=torch.float64)
    x, name = given(step), f"weight_hh{suffix(step)}"
    for module in (ours, theirs):
        assert module.requires_grad_(False) is module
        assert not any(each.requires_grad for each in tensors(module(x)))
        module.requires_grad_(True).get_parameter(name).requires_grad_(False)
        tensors(module(x))[0].sum().backward()
    for (key, mine), true in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (true.grad is None) == (key == name)
        if mine.grad is not None:
            assert_equal(mine.grad, true.grad, GRADIENT)


@modules
def test_gradients_add_up_and_are_zeroed(kind, step):
    """``backward`` twice adds; ``zero_grad`` drops, or zeroes."""
    module, _ = big(kind, step)
    x = given(step)
    tensors(module(x))[0].sum().backward()
    once = [each.grad.clone() for each in module.parameters()]
    tensors(module(x))[0].sum().backward()
    for each, first in zip(module.parameters(), once, strict=True):
        assert_equal(each.grad, 2 * first, GRADIENT)
    module.zero_grad(set_to_none=False)
    assert not any(each.grad.any() for each in module.parameters())
    module.zero_grad()
    assert all(each.grad is None for each in module.parameters())


@modules
def test_modes_and_apply(kind, step):
    """``train``, ``eval`` and ``apply`` reach the module and return it; results without dropout do not change."""
    module, seen = make(nn, kind, step=step, dtype=torch.float64), []
    x = given(step)
    expected = tensors(module(x))
    assert module.training
    assert module.eval() is module
    assert not module.training
    assert_same_bits(module(x), expected)
    assert module.train() is module
    assert module.training
    assert module.apply(seen.append) is module
    assert seen == [module]


@modules
def test_an_optimiser(kind, step):
    """A few steps of training go as with torch's module."""
    ours, theirs = big(kind, step)
    x = given(step)
    for module in (ours, theirs):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            tensors(module(x))[0].square().sum().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
    assert_same_results(ours(x), theirs(x))


# ---------------------------------------------------------------- hooks


@modules
def test_hooks(kind, step):
    """Hooks run in torch's order, see torch's shapes, and what they return counts."""
    seen, found = {}, []
    for module in pair(kind, step=step, dtype=torch.float64):
        log = seen[module] = []
        shape = lambda value: [None if each is None else tuple(each.shape) for each in tensors(value)]  # noqa: E731

        def before(module, arguments, log=log, shape=shape):
            log.append(("before", shape(arguments)))
            return (arguments[0] * 2, *arguments[1:])

        def after(module, arguments, named, results, log=log, shape=shape):
            log.append(("after", shape(arguments), sorted(named), shape(results)))
            return tensors(results)[0] * 3

        def back(module, inputs, outputs, log=log):
            log.append(("back", [tuple(each.shape) for each in (*inputs, *outputs)]))
            return (inputs[0] * 5,)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, with_kwargs=True)
        handle = module.register_full_backward_hook(back)
        x = given(step).requires_grad_()
        y = module(x, hx=start(kind, step))
        y.sum().backward()
        found.append((y, x.grad))
        handle.remove()
        module(x, hx=start(kind, step)).sum().backward()
    (mine, gradient), (true, true_gradient) = found
    first, second = seen.values()
    assert [each[0] for each in first] == ["before", "after", "back", "before", "after"]
    assert first == second
    assert_equal(mine, true)
    assert_equal(gradient, true_gradient, GRADIENT)


@modules
def test_a_hook_on_a_parameter(kind, step):
    """``Tensor.register_hook`` changes the gradient of one parameter."""
    ours, theirs = pair(kind, step=step, dtype=torch.float64)
    name = f"weight_ih{suffix(step)}"
    for module in (ours, theirs):
        module.get_parameter(name).register_hook(lambda gradient: gradient * 7)
        tensors(module(given(step)))[0].sum().backward()
    assert_equal(ours.get_parameter(name).grad, theirs.get_parameter(name).grad, GRADIENT)


# ---------------------------------------------------------------- parameters that are replaced


@modules
def test_functional_call(kind, step):
    """``functional_call`` with other parameters, gradients to them, and the module as it was."""
    ours, theirs = big(kind, step)
    x, found = given(step), []
    before = tensors(ours(x))
    for module in (ours, theirs):
        others = {
            name: drawn(*each.shape, seed=place).requires_grad_()
            for place, (name, each) in enumerate(module.named_parameters())
        }
        results = tensors(functional_call(module, others, (x,)))
        found.append((results, torch.autograd.grad(results[0].sum(), list(others.values()))))
    assert_same_results(found[0][0], found[1][0])
    for mine, true in zip(found[0][1], found[1][1], strict=True):
        assert_equal(mine, true, GRADIENT)
    assert_same_bits(ours(x), before)


@modules
@pytest.mark.parametrize("parametrisation", [orthogonal, weight_norm], ids=lambda each: each.__name__)
def test_parametrisations(kind, step, parametrisation):
    """``torch.nn.utils.parametrizations`` on W_hh: the results, the gradients of what is behind it, and its removal."""
    ours, theirs = pair(kind, step=step, dtype=torch.float64)
    name = f"weight_hh{suffix(step)}"
    for module in (ours, theirs):
        torch.manual_seed(0)  # orthogonal completes a basis with random vectors
        parametrisation(module, name)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, given(step), start(kind, step))
    assert_same(copy.deepcopy(ours), theirs, given(step), start(kind, step))  # torch's own layer cannot be copied now
    for module in (ours, theirs):
        remove_parametrizations(module, name)
    assert_same(ours, theirs, given(step), start(kind, step))


@modules
def test_a_parameter_that_is_replaced(kind, step):
    """Assigning a Parameter, its ``data``, or a plain tensor in its place: the next call takes it."""
    ours, theirs = pair(kind, step=step, dtype=torch.float64)
    name = f"weight_hh{suffix(step)}"
    shape = ours.get_parameter(name).shape
    for module in (ours, theirs):
        setattr(module, name, torch.nn.Parameter(drawn(*shape, seed=5)))
    assert_same(ours, theirs, given(step), start(kind, step))
    for module in (ours, theirs):
        module.get_parameter(name).data = drawn(*shape, seed=6)
    assert_same(ours, theirs, given(step), start(kind, step))
    for module in (ours, theirs):
        delattr(module, name)
        setattr(module, name, drawn(*shape, seed=7))
    assert_same(ours, theirs, given(step), start(kind, step))
    assert name not in ours.state_dict()


@modules
def test_two_modules_with_one_parameter(kind, step):
    """A tied parameter gets the gradients of both uses."""
    found = []
    for library in (nn, torch.nn):
        first, second = (make(library, kind, step=step, dtype=torch.float64) for _ in range(2))
        name = f"weight_ih{suffix(step)}"
        setattr(second, name, first.get_parameter(name))
        both = torch.nn.ModuleList([first, second])
        assert len(list(both.parameters())) == 2 * len(list(first.parameters())) - 1
        sum(tensors(each(given(step)))[0].sum() for each in both).backward()
        found.append(first.get_parameter(name).grad)
    assert_equal(*found, GRADIENT)


@kinds
def test_a_layer_inside_a_model(kind):
    """A layer in a container is saved under its path, moves with it, and is found by name."""
    found = []
    for library in (nn, torch.nn):
        torch.manual_seed(2)
        model = torch.nn.ModuleDict(
            {"rnn": make(library, kind), "head": torch.nn.Linear(P if "proj" in kind else H, 1)}
        )
        model.double()
        y = model["head"](model["rnn"](given(False))[0])
        found.append((list(model.state_dict()), y, type(model.get_submodule("rnn")).__name__, str(model)))
    (names, mine, kind_name, printed), (true_names, true, true_kind_name, true_printed) = found
    assert (names, kind_name, printed) == (true_names, true_kind_name, true_printed)
    assert_equal(mine, true)
