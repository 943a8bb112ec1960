"""Metrics: means over the validation samples, written down beside the loss."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch import nn
from toy_run import KillAt, Killed, assert_same_runs, toy_run

from recollect.errors import InputError, TrainingError
from recollect.training import Checkpoints, Evaluation, HistoryFile, Observer, ProgressBar, evaluate, train

MSE = nn.functional.mse_loss


def accuracy(output, y):
    return (output.argmax(1) == y).float().mean()


def absolute(output, y):
    return (output - y).abs().mean().item()


def classes(n):
    return torch.randn(n, 3), torch.randint(4, (n,))


def test_a_metric_is_the_mean_over_all_samples():
    model, batches = nn.Linear(3, 4), [classes(n) for n in (5, 5, 2)]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = evaluate(
        model, batches, nn.functional.cross_entropy, metrics={"accuracy": accuracy, "seven": lambda output, y: 7}
    )
    assert isinstance(found, Evaluation)
    assert found.loss == evaluate(model, batches, nn.functional.cross_entropy)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-6)
    assert found.metrics == {"accuracy": pytest.approx(accuracy(model(x), y).item()), "seven": 7.0}
    assert isinstance(evaluate(model, batches, nn.functional.cross_entropy), float)
    assert evaluate(model, batches, nn.functional.cross_entropy, metrics={}).metrics == {}


def test_time_major_metrics_count_sequences():
    model = nn.LSTM(3, 2)
    batches = [(torch.randn(5, n, 3), torch.randn(5, n, 2)) for n in (4, 1)]

    def first(output, y):
        return absolute(output[0], y)

    def loss(output, y):
        return MSE(output[0], y)

    x, y = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))
    expected = first(model(x), y)
    assert evaluate(model, batches, loss, metrics={"error": first}).metrics["error"] == pytest.approx(expected)


class Seen(Observer):
    def __init__(self):
        self.seen = []

    def on_epoch(self, epoch, history):
        self.seen.append(history.epoch(epoch))


def test_a_run_has_them_in_its_history_and_tells_its_observers(tmp_path):
    seen, shown, path = Seen(), io.StringIO(), tmp_path / "history.jsonl"
    modes = []

    def error(output, y):
        modes.append(torch.is_inference_mode_enabled())
        return absolute(output, y)

    _, history, _ = toy_run(
        metrics={"error": error, "nothing": lambda output, y: math.nan},
        observers=[seen, HistoryFile(path), ProgressBar(Console(file=shown, width=200))],
    )
    assert list(history.metrics) == ["error", "nothing"]
    assert len(history.metrics["error"]) == len(history.validation_loss) == 3
    assert all(map(math.isnan, history.metrics["nothing"]))
    assert modes == [True] * 3
    assert [numbers["error"] for numbers in seen.seen] == history.metrics["error"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["error"] for line in lines] == history.metrics["error"]
    assert [line["nothing"] for line in lines] == [None] * 3
    assert f"error {history.metrics['error'][history.best_epoch]:.3g}" in shown.getvalue().splitlines()[-1]


def test_they_change_nothing_of_the_run():
    with_metrics, without = toy_run(metrics={"error": absolute}), toy_run()
    assert with_metrics[1].metrics
    with_metrics[1].metrics = {}
    assert_same_runs(with_metrics, without)


@pytest.mark.usefixtures("same_bits_and_no_wait")
def test_they_travel_in_checkpoints(tmp_path):
    arguments = {"metrics": {"error": absolute}}
    with pytest.raises(Killed):
        toy_run(checkpoint=Checkpoints(tmp_path / "c", every=1), observers=[KillAt(1, 2)], **arguments)
    with pytest.raises(TrainingError, match=r"another run.*metrics: \['other'\] here, \['error'\] there"):
        toy_run(checkpoint=tmp_path / "c", metrics={"other": absolute})
    with pytest.raises(TrainingError, match=r"another run.*metrics: None here, \['error'\] there"):
        toy_run(checkpoint=tmp_path / "c")
    resumed, straight = toy_run(checkpoint=tmp_path / "c", **arguments), toy_run(**arguments)
    assert_same_runs(resumed, straight)
    assert len(resumed[1].metrics["error"]) == 3


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"error": 3}, "metric 'error'.*a function"),
        ({7: absolute}, "7.*text"),
        ({"": absolute}, "text"),
        ({"train_loss": absolute}, "'train_loss'.*another name"),
        ({"metrics": absolute}, "'metrics'.*another name"),
        ({"epoch": absolute}, "'epoch'.*another name"),
        ([absolute], "list.*a dict"),
        (absolute, "function.*a dict"),
    ],
)
def test_metrics_that_cannot_be_used(metrics, message):
    model, batches = nn.Linear(3, 1), [(torch.ones(2, 3), torch.ones(2, 1))]
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(InputError, match=message):
        train(model, batches, loss=MSE, optimizer=optimizer, epochs=1, validation=batches, metrics=metrics)
    with pytest.raises(InputError, match=message):
        evaluate(model, batches, MSE, metrics=metrics)


@pytest.mark.parametrize("value", [torch.ones(2), None, "high", 1j, torch.ones(1, dtype=torch.complex64)])
def test_a_metric_is_one_number(value):
    batches = [(torch.ones(2, 3), torch.ones(2, 1))]
    with pytest.raises(InputError, match="metric 'error' must return one number"):
        evaluate(nn.Linear(3, 1), batches, MSE, metrics={"error": lambda output, y: value})


def test_without_validation_there_is_nothing_to_measure():
    model, batches = nn.Linear(3, 1), [(torch.ones(2, 3), torch.ones(2, 1))]
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(InputError, match="pass validation="):
        train(model, batches, loss=MSE, optimizer=optimizer, epochs=1, metrics={"error": absolute})
