"""What Recollect does, in about a minute: forecasts, held-out errors, and the gradient back through time.

Three networks learn monthly carbon dioxide at Mauna Loa: a tanh RNN, and an LSTM whose forget gate starts
with bias 0 and with bias 1. Run it with ``make demo``.
"""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import recollect
from recollect.diagnosis import compare

HORIZON, CONTEXT = 12, 120  # forecast a year from ten years
NETWORKS = {
    "tanh RNN": {"cell": "rnn_tanh"},
    "LSTM, forget bias 0": {"cell": "lstm", "forget_bias": 0.0},
    "LSTM, forget bias 1": {"cell": "lstm", "forget_bias": 1.0},
}
REPORT = Path("out") / "demo.html"


def main(epochs: int = 60, report: Path = REPORT) -> dict[str, float]:
    """Run the demo; return the held-out mean absolute error of each method, in ppm."""
    console = Console(highlight=False)
    series = recollect.datasets.load("co2_monthly")
    console.print(f"[bold]{series.description}[/]: {len(series)} months, forecast {HORIZON} from {CONTEXT}")
    layer = recollect.nn.LSTM(1, 64)
    console.print(f"backend {layer.backend_for(torch.zeros(CONTEXT, 1, 1))}\n")

    errors: dict[str, float] = {}
    before, after = {}, {}
    for name, settings in NETWORKS.items():
        console.print(f"[bold]{name}[/], trained on the first four fifths:")
        model = recollect.Forecaster(HORIZON, CONTEXT, epochs=epochs, verbose=True, **settings)
        result = model.backtest(series)
        errors[name] = result.errors["model"].mae
        baselines = {method: error.mae for method, error in result.errors.items() if method != "model"}

        contexts, targets = result.fitted.windows(result.history)
        some = np.linspace(0, len(contexts) - 1, 64).round().astype(int)
        before[name] = recollect.diagnose(model.initial_network(), contexts[some], targets[some])
        after[name] = recollect.diagnose(result.fitted.network_, contexts[some], targets[some])
    errors |= baselines

    table = Table(
        title=f"\nHeld-out errors: the last {len(series) - len(result.history)} months, never seen in training"
    )
    table.add_column("method")
    table.add_column("mean absolute error (ppm)", justify="right")
    for name, error in sorted(errors.items(), key=lambda item: item[1]):
        table.add_row(name, f"{error:.2f}", style="bold" if name in NETWORKS else "dim")
    console.print(table)

    comparison = compare(
        "Forecasting carbon dioxide: what the gradient does on its way back through time",
        {"before training": before, "after training": after},
        {
            "Held-out errors": [
                ["method", "mean absolute error (ppm)"],
                *([name, f"{error:.2f}"] for name, error in sorted(errors.items(), key=lambda item: item[1])),
            ]
        },
    )
    console.print("\n[bold]The gradient on its way back through time[/]")
    console.print(str(comparison), soft_wrap=True)
    report.parent.mkdir(parents=True, exist_ok=True)
    comparison.to_html(report)
    console.print(f"\nThe report, to open in a browser, offline: {report.resolve()}", soft_wrap=True)
    return errors


if __name__ == "__main__":
    main()
