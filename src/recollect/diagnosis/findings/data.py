"""Data that a recurrent network cannot learn from as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recollect.diagnosis.findings.case import Case, Place
from recollect.diagnosis.findings.finding import Finding, When
from recollect.diagnosis.runs.call import Call

# Of a feature: the largest standard deviation or mean, and the smallest largest value, that a start in ±1/sqrt(H)
# is made for; and how much larger than another it may be.
_LARGE, _SMALL, _APART = 10.0, 0.01, 1000.0


def input_scale(case: Case) -> list[Finding]:
    """``"input_scale"``: a feature that a recurrent layer reads has a standard deviation or a mean beyond ±10, all of
    them stay within ±0.01, or one varies more than 1,000 times as much as another.
    """
    found = []
    for call in case.calls:
        values = _valid(call)  # [n, I]
        if not len(values):
            continue
        deviation, mean = values.std(0, correction=0), values.mean(0).abs()
        varying = deviation[deviation > 0]
        worst = int(torch.maximum(deviation, mean).argmax())
        largest = float(values.abs().max())
        who = call.path or "the layer"
        if float(torch.maximum(deviation, mean)[worst]) > _LARGE:
            size = f"mean {values[:, worst].mean():.3g} and deviation {deviation[worst]:.3g}"
            said = f"feature {worst} of what {who} reads has {size}"
        elif 0 < largest < _SMALL:
            said = f"what {who} reads is never larger than {largest:.2g}"
        elif len(varying) and float(varying.max() / varying.min()) > _APART:
            said = f"what {who} reads has features that vary by {varying.min():.2g} and by {varying.max():.2g}"
        else:
            continue
        found.append(
            Finding("input_scale", "warning", f"{said}; weights start for numbers around 1", *_scaled(case, call))
        )
    return found


def _scaled(case: Case, call: Call) -> tuple[str, When]:
    """Code that brings the features to mean 0 and deviation 1, and where it belongs."""
    x = case.x
    if isinstance(x, Tensor) and isinstance(call.x, Tensor) and x.shape == call.x.shape:
        axes = tuple(range(x.dim() - 1))
        return (
            f"mean, std = x.mean({axes}), x.std({axes}).clamp(min=1e-12)\n"
            "x = (x - mean) / std  # and later data with the same two",
            "data",
        )
    label = next(iter(call.unrolled))
    place = Place(call.path, call.unrolled[label], call.path in case.ours)
    return (
        "# what the layer reads is made inside the model: bring its first weights to that scale\n"
        f"with torch.no_grad():\n    {place.parameter('weight_ih')}.div_({float(_valid(call).std()):.3g})",
        "model",
    )


def _valid(call: Call) -> Tensor:
    """[n, I] the valid steps of a layer's input, in no order."""
    if isinstance(call.x, PackedSequence):
        return call.x.data
    x = call.rows()
    if call.lengths is None:
        return x.flatten(0, 1)
    return x[torch.arange(x.shape[1]) < call.lengths[:, None]]


def all_padding(case: Case) -> list[Finding]:
    """``"all_padding"``: rows of length 0, or, where no lengths are known, rows of zeros among others that are none."""
    call = case.calls[0]
    if call.unbatched or not call.batch:
        return []
    if call.lengths is None:
        empty = (call.rows() == 0).flatten(1).all(1)
        what = "hold nothing but zeros"
        keep = f"(x != 0).flatten({'1).any(1)' if call.layer.batch_first else '2).any(2).any(0)'}"
    else:
        empty = call.lengths == 0
        what = "have no valid step"
        keep = "lengths > 0"
    rows = torch.nonzero(empty).flatten().tolist()
    if not rows or len(rows) == call.batch:
        return []
    named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    evidence = f"{len(rows)} of {call.batch} rows {what} (row {named}): they teach nothing, but count in every mean"
    return [Finding("all_padding", "warning", evidence, keep_rows(call, keep), "data")]


def keep_rows(call: Call, condition: str) -> str:
    """Code that leaves out the rows of the data for which a condition does not hold."""
    x = "x[keep]" if call.layer.batch_first else "x[:, keep]"
    names, values = (
        ("x, y", f"{x}, y[keep]") if call.lengths is None else ("x, y, lengths", f"{x}, y[keep], lengths[keep]")
    )
    return f"keep = {condition}\n{names} = {values}"
