"""The loop: what it computes, how it ends, and that it leaves no trace in the random state."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recollect.errors import InputError, TrainingError
from recollect.training import Observer, clip_by_global_norm, evaluate, train

MSE = nn.functional.mse_loss


class Scalar(nn.Module):
    """One weight that is also the output: loss and gradient can be done in the head."""

    def __init__(self, start=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return self.weight * x


def pairs(*targets):
    return [(torch.ones(1), torch.tensor([target])) for target in targets]


def sgd(model, lr=0.25):
    return torch.optim.SGD(model.parameters(), lr=lr)


def regression(samples=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).tanh())


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))


class Events(Observer):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, epochs, steps):
        self.seen.append(("begin", epochs, steps))

    def on_step(self, step, loss, clipped):
        self.seen.append(("step", step, loss, clipped.norm, clipped.scale))

    def on_epoch(self, epoch, history):
        self.seen.append(("epoch", epoch, history.train_loss[-1]))

    def on_train_end(self, history):
        self.seen.append(("end", len(history.train_loss)))


def test_a_run_in_closed_form():
    # loss (w - 1)^2, gradient 2(w - 1), lr 1/4: the distance to 1 halves at each step.
    model, events = Scalar(0.0), Events()
    history = train(model, pairs(1.0, 1.0), loss=MSE, optimizer=sgd(model), epochs=2, observers=[events])
    assert model.weight.item() == 1 - 1 / 16
    assert history.train_loss == [(1 + 1 / 4) / 2, (1 / 16 + 1 / 64) / 2]
    assert history.gradient_norm == [(2 + 1) / 2, (1 / 2 + 1 / 4) / 2]
    assert history.clipped_fraction == [0.0, 0.0]
    assert history.skipped_steps == [0, 0]
    assert history.validation_loss == []
    assert history.best_epoch is None
    assert len(history.seconds) == 2
    assert events.seen == [
        ("begin", 2, 2),
        ("step", 0, 1.0, 2.0, 1.0),
        ("step", 1, 1 / 4, 1.0, 1.0),
        ("epoch", 0, (1 + 1 / 4) / 2),
        ("step", 0, 1 / 16, 1 / 2, 1.0),
        ("step", 1, 1 / 64, 1 / 4, 1.0),
        ("epoch", 1, (1 / 16 + 1 / 64) / 2),
        ("end", 2),
    ]


def test_clipping_bounds_the_step():
    model = Scalar(0.0)
    history = train(model, pairs(100.0), loss=MSE, optimizer=sgd(model), epochs=3, max_norm=1.0)
    assert model.weight.item() == 3 * 0.25
    assert history.clipped_fraction == [1.0, 1.0, 1.0]
    assert history.gradient_norm[0] == 200.0


def test_the_order_within_a_step(monkeypatch):
    events = []
    model = Scalar(0.0)
    optimizer = sgd(model)
    model.register_forward_hook(lambda *_: events.append("forward"))
    model.weight.register_hook(lambda _: events.append("backward"))
    for name in ("zero_grad", "step"):
        original = getattr(optimizer, name)
        monkeypatch.setattr(optimizer, name, lambda name=name, original=original: (events.append(name), original()))
    monkeypatch.setattr(
        "recollect.training.loop.clip_by_global_norm",
        lambda *arguments: (events.append("clip"), clip_by_global_norm(*arguments))[1],
    )

    def loss(output, y):
        events.append("loss")
        return MSE(output, y)

    train(model, pairs(1.0), loss=loss, optimizer=optimizer, epochs=1, max_norm=1.0)
    assert events == ["zero_grad", "forward", "loss", "backward", "clip", "step"]


def test_losses_are_weighted_by_samples():
    batches = [(torch.ones(3), torch.zeros(3)), (torch.ones(1), torch.tensor([5.0]))]
    model = Scalar(1.0)
    history = train(model, batches, loss=MSE, optimizer=sgd(model, lr=0.0), epochs=1, validation=batches)
    assert history.train_loss == history.validation_loss == [(3 * 1.0 + 1 * 16.0) / 4]
    assert evaluate(model, batches, MSE) == (3 * 1.0 + 1 * 16.0) / 4


def test_early_stopping_restores_the_best_weights():
    # Training pulls the weight to 1 along 1/2, 3/4, 7/8, ...; validation is best near 3/4.
    model = Scalar(0.0)
    history = train(model, pairs(1.0), loss=MSE, optimizer=sgd(model), epochs=50, validation=pairs(0.75), patience=3)
    assert history.best_epoch == 1
    assert len(history.validation_loss) == 1 + 1 + 3
    assert model.weight.item() == 0.75


def test_the_best_weights_are_kept_without_patience_too():
    model = Scalar(0.0)
    history = train(model, pairs(1.0), loss=MSE, optimizer=sgd(model), epochs=6, validation=pairs(0.5))
    assert len(history.train_loss) == 6
    assert (history.best_epoch, model.weight.item()) == (0, 0.5)


class RaiseAt(Observer):
    def __init__(self, epoch, error):
        self.epoch, self.error = epoch, error

    def on_epoch(self, epoch, history):
        if epoch == self.epoch:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_best_weights_and_the_modes(error):
    model, events = Scalar(0.0).eval(), Events()
    with pytest.raises(error):
        train(
            model,
            pairs(1.0),
            loss=MSE,
            optimizer=sgd(model),
            epochs=50,
            validation=pairs(0.75),
            observers=[events, RaiseAt(4, error)],
        )
    assert model.weight.item() == 0.75
    assert not model.training
    assert events.seen[-1] == ("end", 5)


def weights_of_a_run(seed):
    model = network()
    data = regression()
    train(
        model,
        DataLoader(data, batch_size=8, shuffle=True),
        loss=MSE,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        epochs=3,
        max_norm=0.5,
        validation=DataLoader(data, batch_size=16),
        seed=seed,
    )
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_same_seed_gives_the_same_bits():
    first = weights_of_a_run(seed=3)
    torch.rand(17)
    assert torch.equal(first, weights_of_a_run(seed=3))
    assert not torch.equal(first, weights_of_a_run(seed=4))


def test_the_seed_leaves_the_global_random_state_alone():
    model = network()
    before = torch.get_rng_state()
    train(
        model,
        DataLoader(regression(), shuffle=True),
        loss=MSE,
        optimizer=sgd(model, lr=0.01),
        epochs=1,
        seed=0,
    )
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(KeyboardInterrupt):
        train(
            model,
            DataLoader(regression(), shuffle=True),
            loss=MSE,
            optimizer=sgd(model, lr=0.01),
            epochs=1,
            observers=[RaiseAt(0, KeyboardInterrupt)],
            seed=0,
        )
    assert torch.equal(before, torch.get_rng_state())


def test_modes_are_right_in_each_phase_and_restored_part_by_part():
    model = network()
    model[2].eval()
    phases = []
    model[2].register_forward_hook(lambda module, *_: phases.append((module.training, torch.is_grad_enabled())))
    batches = DataLoader(regression(), batch_size=40)
    train(model, batches, loss=MSE, optimizer=sgd(model), epochs=2, validation=batches)
    assert phases == [(True, True), (False, False)] * 2
    assert model.training
    assert not model[2].training


def test_frozen_parameters_count_in_no_norm():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    batch = [(torch.ones(1, 1), torch.ones(1, 1))]
    history = train(model, batch, loss=MSE, optimizer=sgd(model[1], lr=0.0), epochs=3)
    # dL/dw = dL/db = -2 for the second layer; the first would only add to it, more each epoch.
    assert history.gradient_norm == pytest.approx([math.sqrt(8)] * 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_skips_the_step(accumulate):
    model, events = Scalar(0.0), Events()
    batches = pairs(1.0, 1.0, 1.0, math.nan, 1.0, 1.0)
    history = train(model, batches, loss=MSE, optimizer=sgd(model), epochs=1, accumulate=accumulate, observers=[events])
    good = {1: 5, 2: 2}[accumulate]
    assert model.weight.item() == 1 - 0.5**good
    assert history.skipped_steps == [1]
    assert history.train_loss == [sum(0.25**step for step in range(good)) / good]
    assert history.clipped_fraction == [1 / (good + 1)]
    assert history.gradient_norm == [sum(2 * 0.5**step for step in range(good)) / good]
    skipped = [event for event in events.seen if event[0] == "step" and event[4] == 0.0]
    assert [event[1] for event in skipped] == [3 // accumulate]
    assert math.isnan(skipped[0][2])
    assert math.isnan(skipped[0][3])


def test_an_epoch_of_skipped_steps_has_no_mean():
    model = Scalar(0.0)
    history = train(model, pairs(math.nan), loss=MSE, optimizer=sgd(model), epochs=2)
    assert history.skipped_steps == [1, 1]
    assert all(math.isnan(value) for value in (*history.train_loss, *history.gradient_norm))
    assert model.weight.item() == 0.0


def test_a_validation_loss_that_is_not_finite():
    model = Scalar(0.0)
    with pytest.raises(TrainingError, match="validation loss is not finite"):
        train(model, pairs(1.0), loss=MSE, optimizer=sgd(model), epochs=2, validation=pairs(math.nan))


def infinite_slope(output, y):
    """Finite everywhere, with an infinite derivative at 0."""
    return (output - y).abs().sqrt().mean()


def test_a_gradient_that_is_not_finite_skips_the_step():
    model = Scalar(1.0)
    history = train(model, pairs(1.0, 0.0), loss=infinite_slope, optimizer=sgd(model), epochs=1)
    assert history.skipped_steps == [1]
    assert history.clipped_fraction == [0.5]
    assert history.gradient_norm == [0.5]
    assert model.weight.item() == 1.0 - 0.25 * 0.5


def test_skipped_steps_with_good_ones_between_do_not_end_the_run():
    model = Scalar(1.0)
    batches = pairs(0.0, 1.0, 1.0, 1.0, 1.0)
    history = train(model, batches, loss=infinite_slope, optimizer=sgd(model, lr=0.0), epochs=3)
    assert history.skipped_steps == [4, 4, 4]


def test_five_in_a_row_across_epochs_end_the_run():
    model = Scalar(1.0)
    message = (
        r"5 steps in a row.*gradient of the loss with respect to the model's output is nan.*row 0.*"
        r"epoch 3, step 1.*sqrt\(0\)"
    )
    with pytest.raises(TrainingError, match=message):
        train(model, pairs(1.0, 1.0), loss=infinite_slope, optimizer=sgd(model), epochs=9)
    assert model.weight.item() == 1.0


class Recorded(torch.optim.SGD):
    """Keeps the gradients of its steps."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.1)
        self.seen = []

    def step(self, closure=None):
        self.seen.append([parameter.grad.clone() for group in self.param_groups for parameter in group["params"]])
        return super().step()


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [3, 1, 5, 2, 7], [2]])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 10])
def test_accumulated_gradients_are_those_of_the_joined_batches(sizes, accumulate):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(n, 5, 3, generator=generator).double(), torch.randn(n, 4, generator=generator).double())
        for n in sizes
    ]
    groups = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    joined = [tuple(torch.cat(parts) for parts in zip(*group, strict=True)) for group in groups]

    class Last(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0][:, -1]

    runs = []
    for data, size in ((batches, accumulate), (joined, 1)):
        torch.manual_seed(0)
        model = Last(3, 4, batch_first=True, dtype=torch.float64)
        optimizer = Recorded(model)
        history = train(model, data, loss=MSE, optimizer=optimizer, epochs=2, max_norm=0.3, accumulate=size)
        runs.append((optimizer.seen, list(model.parameters()), history.train_loss, history.gradient_norm))
    assert len(runs[0][0]) == 2 * len(groups)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)


def test_steps_and_their_number_are_those_of_the_optimizer():
    model, events = Scalar(0.0), Events()
    train(model, pairs(*[1.0] * 5), loss=MSE, optimizer=sgd(model), epochs=1, accumulate=2, observers=[events])
    assert events.seen[0] == ("begin", 1, 3)
    assert [event[1] for event in events.seen if event[0] == "step"] == [0, 1, 2]


@pytest.mark.parametrize(("per", "rates"), [("epoch", [0.25, 0.125, 0.0625]), ("step", [0.0625, 0.015625, 0.00390625])])
def test_a_scheduler_steps_once_an_epoch_or_once_a_step(per, rates):
    model = Scalar(0.0)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    history = train(
        model,
        pairs(1.0, 1.0),
        loss=MSE,
        optimizer=optimizer,
        epochs=3,
        scheduler=scheduler,
        scheduler_per=per,
    )
    assert history.learning_rate == rates
    assert scheduler.last_epoch == {"epoch": 3, "step": 6}[per]


def test_a_skipped_step_is_none_of_the_schedulers():
    model = Scalar(0.0)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    batches = pairs(1.0, math.nan, 1.0)
    train(model, batches, loss=MSE, optimizer=optimizer, epochs=1, scheduler=scheduler, scheduler_per="step")
    assert scheduler.last_epoch == 2


def test_reduce_on_plateau_follows_the_validation_loss():
    # The weight goes to 1; the validation loss around 0.5 falls in epoch 1 and rises from then on.
    model = Scalar(0.0)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    history = train(
        model,
        pairs(1.0),
        loss=MSE,
        optimizer=optimizer,
        epochs=4,
        scheduler=scheduler,
        validation=pairs(0.5),
    )
    assert history.best_epoch == 0
    assert history.learning_rate == [0.25, 0.25, 0.125, 0.0625]


def scheduled(make):
    def arguments(model):
        optimizer = sgd(model)
        return {"optimizer": optimizer, "scheduler": make(optimizer)}

    return arguments


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (scheduled(torch.optim.lr_scheduler.ReduceLROnPlateau), {}, "validation"),
        (
            scheduled(torch.optim.lr_scheduler.ReduceLROnPlateau),
            {"scheduler_per": "step", "validation": pairs(1.0)},
            "once an epoch",
        ),
        (scheduled(lambda _: torch.optim.lr_scheduler.StepLR(sgd(Scalar()), 1)), {}, "another optimizer"),
        (scheduled(lambda _: "cosine"), {}, "none of PyTorch's"),
        (scheduled(lambda _: None), {"scheduler_per": "batch"}, "'epoch' or 'step'"),
    ],
)
def test_schedulers_that_cannot_be_used(arguments, more, message):
    model = Scalar()
    with pytest.raises(InputError, match=message):
        train(model, pairs(1.0), loss=MSE, epochs=1, **arguments(model), **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"max_norm": 0}, "max_norm"),
        ({"patience": 2}, "validation"),
        ({"accumulate": 0}, "accumulate"),
        ({"patience": 0, "validation": pairs(1.0)}, "patience"),
        ({"seed": -1}, "seed"),
        ({"batches": iter(pairs(1.0))}, "only once"),
        ({"validation": iter(pairs(1.0))}, "only once"),
        ({"loss": lambda output, y: output.expand(2)}, "one number"),
        ({"loss": lambda output, y: 1.0}, "one number"),
        ({"loss": lambda output, y: output.sum() * 1j}, "one number"),
        ({"loss": lambda output, y: MSE(output, y).detach()}, "no gradient"),
        ({"optimizer": torch.optim.SGD}, "torch.optim.Optimizer"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    model = Scalar()
    with pytest.raises(InputError, match=message):
        train(model, **{"batches": pairs(1.0), "loss": MSE, "optimizer": sgd(model), "epochs": 2, **arguments})


@pytest.mark.parametrize("value", [torch.ones(2), 1.0, torch.tensor(1j)])
def test_a_validation_loss_that_is_no_number(value):
    with pytest.raises(InputError, match="one number"):
        evaluate(Scalar(), pairs(1.0), lambda output, y: value)


def optimizers():
    found = {name: getattr(torch.optim, name) for name in torch.optim.__all__}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and kind is not torch.optim.Optimizer}


@pytest.mark.parametrize("name", optimizers())
def test_an_optimizer_that_needs_a_closure_is_refused_and_no_other(name):
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    arguments = {
        "batches": [(torch.ones(2, 2), torch.ones(2, 1))],
        "loss": MSE,
        "optimizer": optimizers()[name](model.parameters()),
        "epochs": 1,
    }
    if name == "LBFGS":
        with pytest.raises(InputError, match=r"LBFGS.*Adam.*optimizer\.step\(closure\)"):
            train(model, **arguments)
        assert torch.equal(model.weight, before)
    elif name == "SparseAdam":  # takes sparse gradients only, which are not clipped
        with pytest.raises(RuntimeError, match="dense"):
            train(model, **arguments)
    else:
        train(model, **arguments)
        assert not torch.equal(model.weight, before)


def frozen(model):
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "trained", "message"),
    [
        (Scalar(), Scalar(), "none of the model's.*given: SGD with 1 parameter"),
        (Scalar(), nn.LSTM(2, 3), "none of the model's.*given: SGD with 4 parameter"),
        (frozen(scalar := Scalar()), scalar, "requires_grad"),
        (nn.Identity(), Scalar(), "no parameters"),
    ],
)
def test_an_optimizer_of_another_model_is_refused_at_once(model, trained, message):
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    with pytest.raises(InputError, match=message):
        train(model, pairs(1.0), loss=MSE, optimizer=optimizer, epochs=1)


def test_an_optimizer_of_a_part_or_of_more_than_the_model_is_meant():
    model, scale = nn.Sequential(Scalar(1.0), frozen(Scalar(1.0))), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model[0].parameters(), scale], lr=0.1)
    train(model, pairs(2.0), loss=lambda output, y: MSE(scale * output, y), optimizer=optimizer, epochs=1)
    assert (model[0].weight.item(), scale.item()) == pytest.approx((1.2, 1.2))
    assert model[1].weight.item() == 1.0


def test_no_batches():
    model = Scalar()
    with pytest.raises(TrainingError, match="no batches"):
        train(model, [], loss=MSE, optimizer=sgd(model), epochs=1)
    with pytest.raises(TrainingError, match="no batches"):
        evaluate(model, [], MSE)
