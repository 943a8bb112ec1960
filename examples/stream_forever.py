"""A model on a live stream, one value at a time, killed and started again in the middle without losing its memory.

The process that steps needs no torch: only NumPy, llvmlite and the model file. Run it with
``python examples/stream_forever.py``.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import recollect


def save_model(path: Path) -> nn.Module:
    """Any model of ours and Linear; a trained one is saved the same way."""
    torch.manual_seed(0)
    model = nn.Sequential(recollect.nn.LSTM(1, 64), nn.Linear(64, 1))
    recollect.save(model, path)
    return model


def main(steps: int = 2000) -> float:
    """Stream a sine; return the largest difference from the module that sees all of it at once."""
    x = np.sin(np.arange(steps, dtype=np.float32) / 20)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        lstm, head = save_model(path)
        stepper = recollect.stream.Stepper.load(path)
        start = time.perf_counter()
        y = [stepper.step(each) for each in x[: steps // 2]]
        each = (time.perf_counter() - start) / len(y)

        memory = stepper.snapshot()  # bytes: to a file, a database, another machine
        stepper = recollect.stream.Stepper.load(path)  # as after a crash
        stepper.restore(memory)
        y += [stepper.step(each) for each in x[steps // 2 :]]
    print(f"{each * 1e6:.1f} µs a step, {len(memory)} bytes of memory for the stream")
    with torch.no_grad():
        whole, _ = lstm(torch.from_numpy(x))
        return float(np.abs(np.array(y) - head(whole).numpy()).max())


if __name__ == "__main__":
    print(f"largest difference from the module on the whole sequence: {main():.1e}")
