"""What a batch may be, how many samples it counts for, and where its tensors go."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import recollect
from recollect.errors import InputError, TrainingError
from recollect.training import Observer, evaluate, train
from recollect.training.batches import Batch, device_of, moved

MSE = nn.functional.mse_loss
T, SIZES = 5, (4, 4, 1, 2)  # steps; sequences in each batch, the last ones uneven


class Tagger(nn.Module):
    """An output for each step, in the layout of its layer."""

    def __init__(self, make=nn.LSTM, *, batch_first=False):
        super().__init__()
        self.rnn = make(3, 4, batch_first=batch_first, dtype=torch.float64)
        self.head = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class Tokens(Tagger):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3, dtype=torch.float64)

    def forward(self, x):
        return super().forward(self.embedding(x))


class Last(Tagger):
    def forward(self, x):
        return super().forward(x)[-1]


class Turned(Tagger):
    """Takes [B, T, I] and turns it around for its time-major layer."""

    def forward(self, x):
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class Mixed(Tagger):
    def __init__(self):
        super().__init__()
        self.second = nn.GRU(2, 2, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.second(super().forward(x).transpose(0, 1))[0].transpose(0, 1)


class WithLengths(Tagger):
    def forward(self, x, *, lengths):
        return self.head(self.rnn(x, lengths=lengths)[0])


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cells(output, y):
    return nn.functional.cross_entropy(output.flatten(0, 1), y.flatten())


# A model, its batch dimension and what is said of it, its loss, and a function that draws a batch of n sequences.
LAYOUTS = {
    "time-major": (Tagger, 1, None, MSE, lambda n: (drawn(T, n, 3), drawn(T, n, 2))),
    "time-major classes": (
        Tagger, 1, None, cells, lambda n: (drawn(T, n, 3), torch.randint(2, (T, n))),
    ),
    "time-major tokens": (
        Tokens, 1, None, cells, lambda n: (torch.randint(7, (T, n)), torch.randint(2, (T, n))),
    ),
    "time-major, ours": (
        lambda: Tagger(recollect.nn.RNN), 1, None, MSE, lambda n: (drawn(T, n, 3), drawn(T, n, 2)),
    ),
    "time-major, a target for each sequence": (Last, 0, None, MSE, lambda n: (drawn(T, n, 3), drawn(n, 2))),
    "batch-first": (
        lambda: Tagger(batch_first=True), 0, None, MSE, lambda n: (drawn(n, T, 3), drawn(n, T, 2)),
    ),
    "turned around in the model": (Turned, 0, 0, MSE, lambda n: (drawn(n, T, 3), drawn(n, T, 2))),
    "both kinds of layers": (Mixed, 1, 1, MSE, lambda n: (drawn(T, n, 3), drawn(T, n, 2))),
    "no layer that says": (
        lambda: nn.Linear(3, 2, dtype=torch.float64), 1, 1, MSE, lambda n: (drawn(T, n, 3), drawn(T, n, 2)),
    ),
}  # fmt: skip
layouts = pytest.mark.parametrize(("make", "dim", "said", "loss", "draw"), LAYOUTS.values(), ids=LAYOUTS)


def joined(batches, dim):
    """One batch of all sequences; inputs lie like their targets, or with time first where these have no time."""
    x, y = zip(*batches, strict=True)
    time_major = dim == 1 or (dim == 0 and x[0].shape[0] != y[0].shape[0])
    return torch.cat(x, dim=int(time_major)), torch.cat(y, dim=dim)


class Losses(Observer):
    def __init__(self):
        self.seen = []

    def on_step(self, step, loss, clipped):
        self.seen.append((loss, clipped.norm))


@layouts
def test_the_mean_of_batches_is_the_loss_over_all_their_sequences(make, dim, said, loss, draw):
    model, batches = make(), [draw(n) for n in SIZES]
    x, y = joined(batches, dim)
    expected = loss(model(x), y).item()
    assert evaluate(model, batches, loss, batch_dim=said) == pytest.approx(expected, rel=1e-12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    history = train(
        model, batches, loss=loss, optimizer=optimizer, epochs=1, validation=batches, batch_dim=said
    )  # fmt: skip
    assert history.train_loss + history.validation_loss == pytest.approx([expected] * 2, rel=1e-12)


@layouts
def test_accumulated_steps_are_those_of_the_joined_sequences(make, dim, said, loss, draw):
    model, batches = make(), [draw(n) for n in SIZES]
    x, y = joined(batches, dim)
    value = loss(model(x), y)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    steps, optimizer = Losses(), torch.optim.SGD(model.parameters(), lr=0.0)
    train(
        model, batches, loss=loss, optimizer=optimizer, epochs=1, accumulate=len(batches), batch_dim=said,
        observers=[steps],
    )  # fmt: skip
    assert steps.seen == [pytest.approx((value.item(), norm), rel=1e-12)]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("form", ["triple", "dict", "list of lengths"])
def test_lengths_say_how_many_sequences_there_are(batch_first, form):
    model, dim = WithLengths(recollect.nn.RNN, batch_first=batch_first), 0 if batch_first else 1
    triples = [
        ((drawn(n, T, 3) if batch_first else drawn(T, n, 3)), torch.randint(T + 1, (n,)),
         (drawn(n, T, 2) if batch_first else drawn(T, n, 2)))
        for n in SIZES
    ]  # fmt: skip
    x, y = (torch.cat([triple[i] for triple in triples], dim) for i in (0, 2))
    lengths = torch.cat([triple[1] for triple in triples])
    expected = MSE(model(x, lengths=lengths), y).item()
    shapes = {
        "triple": lambda x, lengths, y: (x, lengths, y),
        "dict": lambda x, lengths, y: {"y": y, "lengths": lengths, "x": x},
        "list of lengths": lambda x, lengths, y: [x, lengths.tolist(), y],
    }
    batches = [shapes[form](*triple) for triple in triples]
    assert evaluate(model, batches, MSE) == pytest.approx(expected, rel=1e-12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    history = train(model, batches, loss=MSE, optimizer=optimizer, epochs=1, validation=batches)
    assert history.train_loss + history.validation_loss == pytest.approx([expected] * 2, rel=1e-12)


def test_lengths_say_so_where_no_layer_does():
    class Steps(nn.Linear):
        def forward(self, x, *, lengths):
            return super().forward(x)

    model = Steps(3, 2, dtype=torch.float64)
    parts = [(drawn(T, n, 3), torch.full((n,), T), drawn(T, n, 2)) for n in SIZES]
    x, lengths, y = (torch.cat(column, dim) for column, dim in zip(zip(*parts, strict=True), (1, 0, 1), strict=True))
    expected = MSE(model(x, lengths=lengths), y).item()
    assert evaluate(model, parts, MSE) == pytest.approx(expected, rel=1e-12)


def test_packed_sequences_count_by_sequences_where_targets_do_and_by_steps_where_they_are_packed():
    model = nn.LSTM(3, 2, dtype=torch.float64)
    series = [[drawn(length, 3) for length in lengths] for lengths in ([5, 3, 1], [4])]
    packed = [pack_sequence(part, enforce_sorted=False) for part in series]
    whole = pack_sequence([*series[0], *series[1]], enforce_sorted=False)

    def squares(output, y):
        return output[0].data.square().mean() + 0 * (y.data if hasattr(y, "batch_sizes") else y).sum()

    expected = squares(model(whole), torch.zeros(1)).item()
    for targets in (packed, [x.data for x in packed]):
        batches = list(zip(packed, targets, strict=True))
        assert evaluate(model, batches, squares) == pytest.approx(expected, rel=1e-12)

    def final(output, y):
        return output[1][0].square().mean() + 0 * y.sum()

    def padded(output, y):
        return final(output, y) if y.shape[0] > 1 else pytest.fail("no padded target")

    expected = final(model(whole), torch.zeros(1)).item()
    one_each = [(x, torch.zeros(len(part))) for x, part in zip(packed, series, strict=True)]
    assert evaluate(model, one_each, final) == pytest.approx(expected, rel=1e-12)
    time_major = [(x, torch.zeros(7, len(part))) for x, part in zip(packed, series, strict=True)]
    assert evaluate(model, time_major, padded) == pytest.approx(expected, rel=1e-12)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x, *, scale=1.0):
        return {"first": scale * self.first(x), "second": self.second(x)}


def both(output, y):
    return sum(MSE(output[name], y[name]) for name in ("first", "second"))


def test_dict_batches_and_dict_targets():
    model = TwoHeads()
    parts = [(torch.randn(n, 3), torch.randn(n, 1), torch.randn(n, 1)) for n in SIZES]
    x, first, second = (torch.cat(column) for column in zip(*parts, strict=True))
    expected = both(model(x, scale=2.0), {"first": first, "second": second}).item()
    for kind in (dict, OrderedDict, UserDict):
        batches = [kind(x=x, scale=2.0, y=kind(first=first, second=second)) for x, first, second in parts]
        assert evaluate(model, batches, both) == pytest.approx(expected, rel=1e-6)


Wide = namedtuple("Wide", "x mask y extra")
Pair = namedtuple("Pair", "inputs targets")


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        (torch.ones(2, 3), "Tensor"),
        (np.ones((2, 3)), "ndarray"),
        (torch.ones(2, 3).numpy(), "ndarray"),
        ((torch.ones(2, 3),), "a tuple of 1"),
        ([torch.ones(2, 3)] * 4, "a list of 4"),
        (Wide(1, 2, 3, 4), "a Wide of 4"),
        (pack_sequence([torch.ones(2, 3)]), "a PackedSequence"),
        ({"x": torch.ones(2, 3)}, r"a dict with \['x'\]"),
        ({"input": torch.ones(2, 3), "y": torch.ones(2)}, r"a dict with \['input', 'y'\]"),
        ({"x": torch.ones(2, 3), "y": torch.ones(2), 3: 4}, r"a dict with \['x', 'y', 3\]"),
        ("x", "a str"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_batch_is_told_what_is(batch, given):
    model = nn.Linear(3, 1)
    message = rf"given: .*{given}.*expected: \(x, y\), \(x, lengths, y\) or a dict"
    with pytest.raises(InputError, match=message):
        train(model, [batch], loss=MSE, optimizer=torch.optim.SGD(model.parameters()), epochs=1)
    with pytest.raises(InputError, match=message):
        evaluate(model, [batch], MSE)


def test_a_single_pair_in_place_of_batches():
    with pytest.raises(InputError, match=r"remedy: .*\[\(x, y\)\]"):
        evaluate(nn.Linear(3, 1), (torch.ones(2, 3), torch.ones(2, 1)), MSE)


def test_named_pairs_are_pairs():
    model = nn.Linear(3, 1)
    batch = Pair(torch.ones(2, 3), torch.zeros(2, 1))
    assert evaluate(model, [batch], MSE) == evaluate(model, [tuple(batch)], MSE)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones(2), "ndarray.*torch.as_tensor"),
        ([torch.ones(2), torch.ones(2)], "list.*a dict of tensors"),
        (None, "NoneType"),
        ({}, "nothing"),
        ({"first": torch.ones(2), "second": torch.ones(3)}, "'first': 2, 'second': 3"),
        ({"first": torch.ones(2), "second": 1.0}, "float"),
    ],
)
def test_targets_that_cannot_be_counted(y, message):
    model = nn.Linear(3, 1)
    with pytest.raises(InputError, match=message):
        evaluate(model, [(torch.ones(2, 3), y)], MSE)


@pytest.mark.parametrize(("dim", "message"), [(-1, "batch_dim"), (True, "batch_dim"), (1.5, "batch_dim")])
def test_dimensions_that_cannot_be(dim, message):
    model = nn.Linear(3, 1)
    batches = [(torch.ones(2, 3), torch.ones(2))]
    with pytest.raises(InputError, match=message):
        evaluate(model, [], MSE, batch_dim=dim)
    with pytest.raises(InputError, match=message):
        train(
            model, batches, loss=MSE, optimizer=torch.optim.SGD(model.parameters()), epochs=1, batch_dim=dim
        )  # fmt: skip


def test_a_dimension_that_the_target_does_not_have():
    with pytest.raises(InputError, match=r"batch_dim=1, y of shape \[2\]"):
        evaluate(nn.Linear(3, 1), [(torch.ones(2, 3), torch.ones(2))], MSE, batch_dim=1)


@pytest.mark.parametrize("batch", [(torch.ones(2, 3), [2, 2], torch.ones(2, 1)),
                                   {"x": torch.ones(2, 3), "y": torch.ones(2, 1), "mask": 1}])  # fmt: skip
def test_a_model_that_takes_no_such_keyword(batch):
    with pytest.raises(InputError, match=r"does not take what the batch holds; given: .*Linear.*(lengths|mask)"):
        evaluate(nn.Linear(3, 1), [batch], MSE)


def test_a_step_is_made_again_with_all_of_its_batch():
    class Masked(nn.Linear):
        def forward(self, x, *, mask):
            return super().forward(x * mask)

    model = Masked(3, 1)
    mask = torch.ones(2, 1)
    mask[1] = float("nan")
    bad = {"x": torch.ones(2, 3), "mask": mask, "y": torch.ones(2, 1)}
    with pytest.raises(TrainingError, match=r"the input mask is nan at row 1"):
        train(model, [bad] * 5, loss=MSE, optimizer=torch.optim.SGD(model.parameters()), epochs=1)
    model = TwoHeads()
    targets = {"first": torch.ones(2, 1), "second": torch.tensor([[1.0], [float("inf")]])}
    with pytest.raises(TrainingError, match=r"the target y\['second'\], at index \[1, 0\], is inf"):
        train(
            model, [(torch.ones(2, 3), targets)] * 5, loss=both, optimizer=torch.optim.SGD(model.parameters()),
            epochs=1,
        )  # fmt: skip


class Elsewhere(torch.Tensor):
    """A tensor as on another device: all it can do is to be moved."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.to, torch.Tensor.cpu):
            assert args[1:] == (torch.device("cpu"),)
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        name = getattr(function, "__name__", "")
        if name in ("__get__", "dim", "size"):  # its shape and the like are known without it
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        raise AssertionError(f"{name} of a tensor that was not moved")


def elsewhere(tensor):
    return tensor.as_subclass(Elsewhere)


class Nested(nn.Linear):
    def forward(self, x, *, more):
        first, (second, packed) = x
        assert type(packed.data) is torch.Tensor
        assert type(more["mask"]) is torch.Tensor
        return super().forward(first + second * more["mask"])


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, lambda parts: defaultdict(list, parts)])
def test_every_tensor_of_every_batch_is_moved_to_the_model(kind):
    model = Nested(3, 1)
    packed = pack_padded_sequence(torch.ones(2, 2, 3), [2, 1])
    packed = packed._replace(data=elsewhere(packed.data))
    x = elsewhere(torch.ones(2, 3))
    batch = {"x": [x, (x, packed)], "more": kind({"mask": x, "name": "text"}), "y": elsewhere(torch.ones(2, 1))}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    metrics = {"error": lambda output, y: (output - y).abs().mean()}
    history = train(
        model, [batch] * 3, loss=MSE, optimizer=optimizer, epochs=2, accumulate=2, validation=[batch], metrics=metrics
    )
    assert history.validation_loss[1] < history.validation_loss[0]
    # The look at a bad step, too.
    batch["y"] = elsewhere(torch.full((2, 1), float("nan")))
    with pytest.raises(TrainingError, match="the target y, at index"):
        train(model, [batch] * 5, loss=MSE, optimizer=optimizer, epochs=1)


def test_where_batches_go():
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.Identity()) is None
    assert device_of(nn.Linear(1, 1, device="meta")) is None  # such a model's weights are elsewhere, or nowhere
    assert device_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))) is None


def test_lengths_stay_where_they_are_and_so_does_what_is_there_already():
    x, lengths = torch.ones(2, 3), torch.tensor([2, 1])
    batch = Batch(x, {"lengths": lengths, "mask": x}, x, 2)
    [there] = moved([batch], torch.device("meta"))
    assert there.x.is_meta
    assert there.kwargs["mask"].is_meta
    assert there.y.is_meta
    assert there.kwargs["lengths"] is lengths  # torch's packing takes them from the CPU only
    [here] = moved([batch], torch.device("cpu"))
    assert here.x is x
    assert here.y is x
    [alone] = moved([batch], None)
    assert alone is batch
