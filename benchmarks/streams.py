"""One step of a live stream, beside its peers: ``python -m benchmarks.streams``.

Every peer is called from Python with a NumPy array, gives one back and keeps its state from call to call. All run in
turn, in one process, on one thread where there are few streams; the figures are medians of the rounds, in
microseconds a call, and of the ratios peer / ours. No speed is printed before the outputs agree.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import recollect

Step = Callable[[np.ndarray], np.ndarray]

INPUTS = 16
SHAPES = [(1, 64), (1, 128), (1, 256), (256, 64)]  # (B, H)
PARITY = 1e-5
SECONDS = 0.02  # of one peer in one round
PAUSE = 0.05  # seconds before it: the threads of the one before look for more work for a while


def ours(lstm: torch.nn.LSTM, streams: int) -> Step:
    """A `recollect.stream.Stepper` of the model's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        recollect.save(recollect.convert(lstm), path)
        return recollect.stream.Stepper.load(path).step


def torch_lstm(lstm: torch.nn.LSTM, streams: int) -> Step:
    """`torch.nn.LSTM`, called with T = 1."""
    state = None

    @torch.inference_mode()
    def step(x: np.ndarray) -> np.ndarray:
        nonlocal state
        y, state = lstm(torch.from_numpy(x).unsqueeze(0), state)
        return y[0].numpy()

    return step


def torch_lstm_cell(lstm: torch.nn.LSTM, streams: int) -> Step:
    """`torch.nn.LSTMCell` with the same weights."""
    cell = torch.nn.LSTMCell(lstm.input_size, lstm.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): each for name, each in lstm.state_dict().items()})
    state = None

    @torch.inference_mode()
    def step(x: np.ndarray) -> np.ndarray:
        nonlocal state
        state = cell(torch.from_numpy(x), state)
        return state[0].numpy()

    return step


def onnx_runtime(lstm: torch.nn.LSTM, streams: int) -> Step:
    """ONNX Runtime, with ONNX's own LSTM operator.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    hidden = lstm.hidden_size

    def packed(name: str) -> np.ndarray:
        """ONNX has the gates in the order i o f g."""
        i, f, g, o = lstm.state_dict()[name].chunk(4)
        return torch.cat([i, o, f, g]).unsqueeze(0).numpy()

    bias = np.concatenate([packed("bias_ih_l0"), packed("bias_hh_l0")], axis=1)
    weights = {"W": packed("weight_ih_l0"), "R": packed("weight_hh_l0"), "B": bias}
    shapes = {"x": [1, streams, lstm.input_size], "h": [1, streams, hidden], "c": [1, streams, hidden]}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *weights, "", "h", "c"], ["", "h_out", "c_out"], hidden_size=hidden)],
        "lstm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, shapes[name]) for name in ("h", "c")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    h = c = np.zeros((1, streams, hidden), np.float32)

    def step(x: np.ndarray) -> np.ndarray:
        nonlocal h, c
        h, c = session.run(None, {"x": x[None], "h": h, "c": c})
        return h[0]

    return step


PEERS: dict[str, Callable[[torch.nn.LSTM, int], Step]] = {
    "torch.nn.LSTM": torch_lstm,
    "torch.nn.LSTMCell": torch_lstm_cell,
    "ONNX Runtime": onnx_runtime,
}


def subjects(streams: int, hidden: int) -> tuple[dict[str, Step], list[str]]:
    """The steps by name, ours first, with equal weights; and the peers that are not installed."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(INPUTS, hidden).eval()
    found, missing = {"recollect": ours(lstm, streams)}, []
    for name, make in PEERS.items():
        try:
            found[name] = make(lstm, streams)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return found, missing


def difference(steps: dict[str, Step], x: np.ndarray, count: int = 20) -> float:
    """The largest difference of any peer's outputs from ours, over some steps of x [B, I] and its multiples."""
    outputs = [[step(x * (1 + place / count)) for place in range(count)] for step in steps.values()]
    return max(float(np.abs(np.array(each) - np.array(outputs[0])).max()) for each in outputs)


def measure(steps: dict[str, Step], x: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each, round by round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    counts = {name: max(1, round(SECONDS / _seconds(step, x, 20))) for name, step in steps.items()}
    for _ in range(rounds):
        for name, step in steps.items():
            time.sleep(PAUSE)
            _seconds(step, x, 20)
            times[name].append(_seconds(step, x, counts[name]))
    return times


def _seconds(step: Step, x: np.ndarray, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step(x)
    return (time.perf_counter() - start) / count


def main() -> int:
    """Print a table for each shape; 1 where outputs differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds (default 15)")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    failed = False
    for streams, hidden in SHAPES:
        threads = 1 if streams == 1 else cores
        torch.set_num_threads(threads)
        steps, missing = subjects(streams, hidden)
        x = np.random.default_rng(0).normal(size=(streams, INPUTS)).astype(np.float32)
        print(f"LSTM, float32, B={streams}, I={INPUTS}, H={hidden}, {threads} thread(s)")
        found = difference(steps, x)
        if not found <= PARITY:
            print(f"  refused: outputs differ by {found:.1e}")
            failed = True
            continue
        times = measure(steps, x, options.rounds)
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            ratio = statistics.median(b / a for a, b in zip(times["recollect"], seconds, strict=True))
            print(f"  {name:18} {middle * 1e6:9.2f} µs {streams / middle / 1e6:7.3f} M stream-steps/s {ratio:7.1f}×")
        for name in missing:
            print(f"  left out: {name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
