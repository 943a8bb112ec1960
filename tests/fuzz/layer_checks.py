"""A call, what a user does between its passes, its backward pass, and whether all of it is as it must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import guarded
import torch
from layer_arguments import Marked, Subject, listed, rows_of
from layer_calls import DTYPES, Call, Kind, backward_expected, examples, forward_expected, nothing_to_read
from memory_kinds import EQUAL, REFUSED, SAFE, Expected, laid, shrink, values_of
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import recollect
from recollect.errors import RecollectError
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

__all__ = ["Call", "Kind", "check", "examples"]

# One number alone, in which most of its terms may cancel out, is less exact than many together; faults are far larger.
_VALUE, _GRADIENT = ({dtype: 10 * most for dtype, most in allowed.items()} for allowed in (VALUE, GRADIENT))


# Between and after ---------------------------------------------------------------------------------


def _change(subject: Subject) -> None:
    """What a user does between the forward and the backward pass."""
    call, layer = subject.call, subject.layer
    kind = call.kind("change")
    every = list(layer.parameters())
    parameter, x = every[call.seed % len(every)], rows_of(subject.x)
    match kind.split():
        case ["module", how, *back]:
            before = parameter.dtype
            getattr(layer, how)()
            if back:
                layer.to(before)
        case ["other", "data"]:
            for each in every:
                each.data = torch.full_like(each, 100.0)
        case ["smaller", "data"]:
            for each in every:
                each.data = each.new_zeros(1)
        case ["data", "of", "x"] if subject.leaf is not None:
            subject.leaf.data = torch.full((1, 1, 1), 3.0)
        case ["in", "place", what]:
            with torch.no_grad():
                (x if what == "x" else parameter).add_(1.0)
        case [("emptied" | "halved") as how, what]:
            shrink((x if what == "x" else parameter).data, how)
        case ["released"]:
            recollect.release_buffers()
        case ["another", "call"]:
            Subject(call, plain=False).run()


def _hooks(kind: str) -> Any:
    """What keeps saved tensors meanwhile."""

    def floating(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda tensor: function(tensor) if tensor.is_floating_point() and tensor.numel() else tensor

    def shrunk(tensor: torch.Tensor) -> torch.Tensor:
        return laid(tensor.detach(), tensor.dtype, kind)

    def other(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype is torch.float64 else tensor.double()

    def same(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    match kind:
        case "clone":
            return saved_tensors_hooks(torch.clone, same)
        case "float64 and back":
            return saved_tensors_hooks(lambda t: (t.dtype, t.double()), lambda pair: pair[1].to(pair[0]))
        case "NumPy and back":
            return saved_tensors_hooks(lambda t: t.detach().to_dense().numpy(force=True).copy(), torch.from_numpy)
        case "bfloat16 and back":
            return saved_tensors_hooks(lambda t: (t.dtype, t.bfloat16()), lambda pair: pair[1].to(pair[0]))
        case "other dtype":
            return saved_tensors_hooks(same, floating(other))
        case "shape":
            return saved_tensors_hooks(same, lambda t: t[..., :1])
        case "nothing":
            return saved_tensors_hooks(same, lambda t: t.new_zeros(0))
        case "flat":
            return saved_tensors_hooks(same, lambda t: t.reshape(-1))
        case "meta":
            return saved_tensors_hooks(same, lambda t: t.to("meta"))
        case "transposed" | "sliced" | "negative" | "expanded" | "zeros" | "emptied" | "halved":
            return saved_tensors_hooks(same, floating(shrunk))
    return nullcontext()


def _edge(leaf: torch.Tensor) -> Any:
    """Where the graph ends, whatever becomes of the tensor; torch has that for dense tensors."""
    return get_gradient_edge(leaf) if leaf.layout is torch.strided and not isinstance(leaf, Marked) else leaf


def _gradients(call: Call, results: dict[str, torch.Tensor], *, plain: bool) -> dict[str, torch.Tensor]:
    """The gradients of the results that the loss has."""
    source = torch.Generator().manual_seed(call.seed + 1)
    kind, dtype, found = call.kind("gradient"), DTYPES[call.dtype], {}
    for name, result in results.items():
        shape = (2, *result.shape) if call.way == "batched" else result.shape
        values = torch.randn(shape, generator=source, dtype=torch.float64).to(dtype).double()
        own = kind if name == "y" else ""
        values = values_of(own, values)
        if call.loss != "both" and name.startswith("final") != (call.loss == "final"):
            continue
        # The first of all states is y once more, and torch would add their gradients, whatever these are.
        if result.requires_grad and not (kind and name == "all of 0"):
            found[name] = values if plain else laid(values, dtype, own)
    return found


def _backward(
    call: Call, results: dict[str, torch.Tensor], edges: dict[str, Any], leaves: dict[str, torch.Tensor], *, plain: bool
) -> dict[str, torch.Tensor | None]:
    """Gradients by name, and what else the way back gives."""
    grads = _gradients(call, results, plain=plain)
    outputs, given, wanted = [results[name] for name in grads], list(grads.values()), list(edges.values())
    if not outputs:
        return {}
    named = lambda found: dict(zip(edges, found, strict=True))  # noqa: E731
    way = call.way
    if way == "accumulate" and call.kind("change"):
        way = "once"
    if way == "accumulate":
        torch.autograd.backward(outputs, given, inputs=list(leaves.values()))
        return {name: leaf.grad for name, leaf in leaves.items()}

    def once(**options: Any) -> Any:
        return torch.autograd.grad(outputs, wanted, given, allow_unused=True, **options)

    if way == "batched":
        return named(once(is_grads_batched=True))
    if way == "twice":
        first, again = once(retain_graph=True), once()
        if not any(what in dict(call.odd) for what in ("hooks", "change", "gradient")):
            for mine, other in zip(first, again, strict=True):
                assert (mine is None) == (other is None)
                if mine is not None:
                    assert_bits(mine, other, "a second backward pass")
        return named(again)
    if way != "second":
        found = named(once())
        if way == "freed" and call.kind("hooks") != "checkpoint" and not nothing_to_read(call):
            try:
                once()
            except RuntimeError:
                return found
            raise AssertionError("a graph that was freed has been gone back through")
        return found
    found = once(create_graph=True)
    source = torch.Generator().manual_seed(call.seed + 2)
    terms = []
    for gradient in found:
        if gradient is not None:
            weight = torch.randn(gradient.shape, generator=source, dtype=torch.float64).to(gradient.dtype)
            if gradient.requires_grad:
                terms.append((gradient * weight).sum())
    second = torch.autograd.grad(sum(terms), wanted, allow_unused=True) if terms else ()
    return named(found) | {f"second {name}": gradient for name, gradient in zip(edges, second, strict=False)}


@contextmanager
def _settings(call: Call) -> Iterator[None]:
    threads = torch.get_num_threads()
    guarded.Side.now = call.side
    torch.set_num_threads(call.threads)
    try:
        with recollect.set_backend(call.backend):
            yield
    finally:
        torch.set_num_threads(threads)


def _mode(call: Call) -> Any:
    return {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[call.mode]()


def _check_expected(error: Exception | None, expected: Expected, where: str) -> None:
    if error is None and expected is REFUSED:
        raise AssertionError(f"the {where} pass accepted what it must refuse")
    if error is not None and expected is EQUAL:
        raise AssertionError(f"the {where} pass refused what is valid") from error


def check(call: Call) -> None:
    """Run a call and raise AssertionError, or what it raised, unless it did what is true of every call."""
    with _settings(call), guarded.allocations():
        _check(call)


def _check(call: Call) -> None:
    subject = Subject(call, plain=False)
    noise, draw = [], subject.layer._noise
    hooks = call.kind("hooks")

    def noted(*arguments: Any) -> Any:
        noise[:] = draw(*arguments)
        return list(noise)

    def forward() -> Any:
        with mock.patch.object(subject.layer, "_noise", noted):
            if hooks != "checkpoint":
                with _hooks(hooks):
                    return subject.run()
            names: list[str] = []

            def run(_: Any) -> Any:
                results, y = subject.run()
                names[:] = results
                return (*results.values(), y if isinstance(y, PackedSequence) else None)

            *found, _ = checkpoint(run, torch.zeros(()), use_reentrant=False)
            return dict(zip(names, found, strict=True)), found[0]

    torch.manual_seed(call.seed)
    leaves = subject.leaves()
    edges = {name: _edge(leaf) for name, leaf in leaves.items()}
    error: Exception | None = None
    try:
        with _mode(call):
            results, _ = forward()
    except (RecollectError, NotImplementedError) as raised:  # torch's own of a layout that its operations do not know
        error = raised
    expected = forward_expected(call)
    _check_expected(error, expected, "forward")
    if error is not None:
        return

    true_results, true_found = _truth(call, noise, leaves)
    if expected is not SAFE:
        assert results.keys() == true_results.keys()
        for name, result in results.items():
            assert_equal(result.detach(), true_results[name].detach(), _VALUE, name)
    if call.mode != "grad":
        return
    found: dict[str, Any] = {}
    expected = max(expected, backward_expected(call))
    torch.set_num_threads(call.threads)
    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(subject.layer, "_noise", noted))
            _change(subject)
            found = _backward(call, results, edges, leaves, plain=False)
    except (RecollectError, RuntimeError) as raised:
        error = raised
    if not true_found and error is None:  # nothing needs a gradient
        return
    _check_expected(error, expected, "backward")
    if error is not None or expected is SAFE:
        return
    assert found.keys() == true_found.keys(), f"{found.keys()} are not {true_found.keys()}"
    for name, gradient in found.items():
        true = true_found[name]
        if gradient is None or true is None:
            other = true if gradient is None else gradient
            assert other is None or not other.any(), f"gradient of {name} is missing"
        else:
            # The true one is of float64; and that of a sparse parameter may be sparse.
            assert_equal(gradient.detach().to_dense(), true.detach().to_dense(), _GRADIENT, f"gradient of {name}")


def _truth(call: Call, noise: list[torch.Tensor], wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results and the gradients of a call by the reference."""
    torch.set_num_threads(1)  # which is fastest for numbers this few
    true = Subject(call, plain=True)
    true_noise = [mask.double() for mask in noise]
    with recollect.set_backend("reference"), mock.patch.object(true.layer, "_noise", return_value=true_noise):
        with _mode(call):
            results, _ = true.run()
        if call.mode != "grad":
            return results, {}
        every = dict(true.layer.named_parameters()) | {"x": true.leaf}
        if true.states is not None:
            every |= {f"initial {place}": state for place, state in enumerate(listed(true.states))}
        leaves = {name: every[name] for name in wanted}
        edges = {name: get_gradient_edge(leaf) for name, leaf in leaves.items()}
        return results, _backward(call, results, edges, leaves, plain=True)
