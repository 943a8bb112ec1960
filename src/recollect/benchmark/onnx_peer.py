"""The LSTM against ONNX Runtime: one LSTM operator."""

# Peers need not be installed.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch

import recollect
from recollect.benchmark.layers import SHAPES
from recollect.benchmark.parity import difference, infer
from recollect.benchmark.subject import Shape, Subject, Trial, multiply_adds

_ORDER = (0, 3, 1, 2)  # ONNX packs i o f g; ours are i f g o


def against_onnx() -> list[Subject]:
    """The LSTM in inference, the only mode of its operator."""
    needs = ("onnx", "onnxruntime")
    return [Subject("LSTM", "ONNX Runtime", "inference", "speed", SHAPES, _prepare, needs=needs)]


def _prepare(shape: Shape) -> Trial:
    import onnxruntime

    layer = recollect.nn.LSTM(shape.inputs, shape.hidden)
    x = torch.randn(shape.steps, shape.batch, shape.inputs)
    session = onnxruntime.InferenceSession(_model(layer), _options(), providers=["CPUExecutionProvider"])
    # Values of the runtime's own spare it the copies into NumPy and back.
    given = {"X": onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())}
    names = ["Y", "Y_h", "Y_c"]

    def theirs() -> Any:
        return session.run_with_ort_values(names, given)

    with torch.no_grad():
        y, (h, c) = layer(x)
    expected = [torch.from_numpy(value.numpy().copy()) for value in theirs()]
    apart = difference([y.unsqueeze(1), h, c], expected)
    steps = float(shape.steps)
    return Trial(infer(lambda: (layer(x)[0],)), theirs, apart, multiply_adds(4, shape), (steps, steps))


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1  # there is one operator
    # Between its runs its threads would go on spinning on the cores that ours are measured on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _model(layer: Any) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    def packed(*tensors: torch.Tensor) -> Any:
        blocks = [tensor.detach().chunk(4)[gate] for tensor in tensors for gate in _ORDER]
        return torch.cat(blocks).unsqueeze(0).contiguous().numpy()

    weights = {
        "W": packed(layer.weight_ih_l0),
        "R": packed(layer.weight_hh_l0),
        "B": packed(layer.bias_ih_l0, layer.bias_hh_l0),
    }
    final = [1, "B", layer.hidden_size]
    outputs = {"Y": ["T", *final], "Y_h": final, "Y_c": final}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["X", *weights], [*outputs], hidden_size=layer.hidden_size)],
        "lstm",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", layer.input_size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 14)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
