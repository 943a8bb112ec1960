"""The answer of ``recollect.diagnose``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect._files import write_atomically
from recollect.diagnosis import flow, report
from recollect.diagnosis.activity import GateActivity, gate_activity, state_norms
from recollect.diagnosis.findings import SEVERITIES, Case, Finding, judge
from recollect.diagnosis.jacobians.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from recollect.diagnosis.jacobians.spectrum import JacobianSpectrum, jacobian_spectrum
from recollect.diagnosis.jacobians.steps import state_sizes
from recollect.diagnosis.memory.horizon import MemoryHorizon, memory_horizon
from recollect.diagnosis.probe.observer import Probe
from recollect.diagnosis.runs.call import choose, join
from recollect.diagnosis.runs.recording import record
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.diagnosis.surface import ErrorSurface
from recollect.errors import InputError
from recollect.nn import Recurrent

_EXPONENTS = 8


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What the gradient does on its way back through time.

    Attributes:
        curve: the name of the curve that is judged, such as ``"rnn.l0.h"``: module path, level and
            direction, state.
        grad_norm_by_lag: that curve, [T_max] float64: at lag k the root mean square, over the rows longer
            than k, of the norm of dL/dh k steps before the row's last.
        gradient_horizon: 1 + the largest lag at which it is still 1 % of its value at lag 0.
        censored: it is so to the start of the sequence, so that the true horizon may be longer.
        growth_per_step: the factor by which it changes per step back in time.
        spectral_radius: the largest absolute eigenvalue of each W_hh, by gate where there are several:
            ``"rnn.weight_hh_l0.i"``.
        curves: the same for all layers, directions and states, in the order in which layers ran.
        horizons: the gradient horizon of each of ``curves``.
        weight_curves: for each layer and direction (``"rnn.l0"``) the norm, [T_max] float64, of what the steps of each
            lag add to dL/dW_hh: which steps still teach the weights anything. These parts, as matrices, add up to it.
        spectral_norm: the largest singular value of each W_hh, by the names of ``spectral_radius``.
        gates: what each gate did (``"rnn.l0.f"``): how far it was open, how often saturated; see `GateActivity`.
        state_norms: the root mean square over rows of the norm of each state at each step in time, by the names of
            ``curves``.
        example: [T, I] the input of each recurrent layer (``"rnn"``), in the row that is each `GateActivity`'s example.
        findings: what there is to say of the gradient, "healthy" if nothing is wrong with it; then what else was found,
            the worst first.
        notes: what to bear in mind when reading the curves.
        loss: L, the number whose gradient it is.
        memory, spectrum, lyapunov: what a thorough diagnosis measures too; else None.
        training: the `Probe` that was given.
        surface: the `ErrorSurface` that was given.
    """

    curve: str
    grad_norm_by_lag: flow.Curve
    gradient_horizon: int
    censored: bool
    growth_per_step: float
    spectral_radius: dict[str, float]
    spectral_norm: dict[str, float]
    curves: dict[str, flow.Curve]
    horizons: dict[str, int]
    weight_curves: dict[str, flow.Curve]
    gates: dict[str, GateActivity]
    state_norms: dict[str, flow.Curve]
    example: dict[str, NDArray[np.float64]]
    findings: list[Finding]
    notes: list[str]
    loss: float
    memory: MemoryHorizon | None = None
    spectrum: JacobianSpectrum | None = None
    lyapunov: LyapunovSpectrum | None = None
    training: Probe | None = None
    surface: ErrorSurface | None = None

    @property
    def weight_grad_norm_by_lag(self) -> flow.Curve:
        """That of ``weight_curves`` which belongs to ``curve``: [T_max] float64."""
        return self.weight_curves[self.curve.rpartition(".")[0]]

    @property
    def worst(self) -> Finding:
        """The finding that matters most: an error before a warning; of equals the first."""
        return min(self.findings, key=lambda finding: SEVERITIES.index(finding.severity))

    def __str__(self) -> str:
        return report.to_text(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file that needs nothing else and no network.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        write_atomically(path, report.to_html(self))


def diagnose(
    model: nn.Module,
    x: Tensor | PackedSequence | tuple[Any, ...],
    target: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    lengths: Any = None,
    layer: str | None = None,
    window: int | None = None,
    training: Probe | None = None,
    surface: ErrorSurface | None = None,
    thorough: bool = False,
    progress: bool = True,
) -> Diagnosis:
    """Show what a model's gradient does on its way back through time.

    It runs once forwards and backwards on a deep copy of the model, in eval mode and float64, with
    ``torch.nn``'s recurrent layers converted. The model, its gradients, its modes and the random state
    stay as they are; hooks of the model run on the copy too. Frozen parameters and ``torch.no_grad()``
    around the call make no difference.

    The loss L, whose gradient is followed, is

    - ``loss(output, target)`` if a loss is given; both arrive whole, in float64, the output as the model
      returned it (of a tuple that the loss cannot take, the first tensor), the target perhaps None;
    - else, with a target, the mean squared error if that holds floating-point numbers and the
      cross-entropy if it holds classes;
    - else, for a bare layer, the sum over rows of ⟨v, h_n⟩, where h_n is each direction's final state of
      the top level and v a fixed unit vector;
    - else the sum over rows of ⟨v, output⟩.

    In the second and fourth case the output is the first tensor that the model returns, and outputs and
    targets that have the time axis are cut to each row's last valid step: it is known by B and T of the
    layer that ran last, in that layer's layout where both fit. A mean over rows is multiplied
    by B, so that a row's gradient is its own: that is so for the two default losses, and for a loss with
    torch's ``reduction="mean"`` (a module's attribute or a function's default); what any other loss
    returns is taken as it is.

    The gradient at a step is dL/ds of a state s as it leaves the step: every use after the step and in the
    output counts, uses inside the step do not. Lag 0 is the step that a direction processes last in a row:
    the row's last valid step, or for a reverse direction its first. A layer that runs several times is
    shown as it ran last, and ``notes`` says so.

    Args:
        model: any module that calls a recurrent layer of ours, or ``torch.nn``'s RNN, LSTM or GRU.
        x: what forward takes: a tensor, a PackedSequence, or a tuple for ``model(*x)``. Whole numbers stay
            whole, floating-point numbers become float64.
        target: see above.
        loss: see above.
        lengths: [B] valid steps of each row, in any order. Passed on if forward takes ``lengths``;
            otherwise the model runs over the padding, and the cut and the lags count from these.
        window: how many steps truncated backpropagation goes back where the model is trained, to be judged.
        training: the `Probe` that watched the training, to be judged and shown.
        surface: the `ErrorSurface` of the model, to be shown.
        thorough: also measure the memory by replacing inputs (`memory_horizon`), the singular values of
            dh_T/dh_{T-k} (`jacobian_spectrum`), the 8 largest Lyapunov exponents (`lyapunov_spectrum`), and let the
            layers run on to see whether their states drift. It takes some seconds.
        progress: show bars for what takes longer than a second, if standard error is a terminal.
        layer: which curve to judge: a module's path ("encoder.rnn"), a level and direction of it
            ("encoder.rnn.l0_reverse"), or a curve ("encoder.rnn.l0.c"). By default the last recurrent
            layer to run; its top level, forward direction and first state.

    Returns:
        A `Diagnosis`; ``print`` it, or write it with ``to_html``.

    Raises:
        InputError: the model has no recurrent layer or cannot run on ``x``; a weight, a state or the loss
            is not finite; the loss does not depend on a recurrent state; no row has two valid steps; or
            there is no such ``layer``.

    Example:
        >>> diagnosis = recollect.diagnose(model, x, target)
        >>> print(diagnosis)
        >>> diagnosis.to_html("report.html")
    """
    calls, value = record(model, x, target, loss, lengths)
    call, judged, chosen = choose(calls, layer)
    every = [each for call in calls for each in call.unrolled.values()]
    curves = {
        f"{each.name}.{name}": flow.grad_norm_by_lag(each, gradients)
        for each in every
        for name, gradients in zip(each.layer.cell.states, each.state_gradients, strict=True)
    }
    curve = curves[chosen]
    if len(curve) < 2:
        raise InputError(
            "a gradient through time needs at least two steps",
            given=f"{len(curve)} valid step in each call of {call.path or 'the layer'}, which ran {call.times} time(s)",
            expected="T >= 2",
            remedy="pass a longer sequence, in one call of the layer; or name another with layer=",
        )
    horizon, censored = flow.gradient_horizon(curve)
    growth = flow.growth_per_step(curve)
    horizons = {name: flow.gradient_horizon(each)[0] for name, each in curves.items()}
    beside = {name: horizons[name] for name in (f"{judged.name}.{state}" for state in judged.layer.cell.states)}
    notes = [
        f"{each.path or 'the layer'} ran {each.times} times; its curves are those of the last time"
        for each in calls
        if each.times > 1
    ]
    memory = spectrum = exponents = None
    if thorough:
        memory = memory_horizon(model, x, lengths=lengths, progress=progress)
        spectrum = jacobian_spectrum(model, x, lengths=lengths, layer=judged.name, progress=progress)
        size = sum(state_sizes(judged))
        exponents = lyapunov_spectrum(
            model, x, lengths=lengths, layer=judged.name, count=min(_EXPONENTS, size), progress=progress
        )
    gates = {f"{each.name}.{gate}": seen for each in every for gate, seen in gate_activity(each).items()}
    case = Case(
        calls=calls,
        judged=judged,
        curve=curve,
        growth=growth,
        horizons=beside,
        gates=gates,
        ours=frozenset(each.path for each in calls if isinstance(model.get_submodule(each.path), Recurrent)),
        x=x,
        memory=max(beside.values()) if memory is None else memory.memory_horizon,
        window=window,
        training=training,
    )
    return Diagnosis(
        curve=chosen,
        grad_norm_by_lag=curve,
        gradient_horizon=horizon,
        censored=censored,
        growth_per_step=growth,
        spectral_radius=_of_weights(every, flow.spectral_radius),
        spectral_norm=_of_weights(every, flow.spectral_norm),
        curves=curves,
        horizons=horizons,
        weight_curves={each.name: flow.weight_grad_norm_by_lag(each) for each in every},
        gates=gates,
        state_norms={f"{each.name}.{name}": norms for each in every for name, norms in state_norms(each).items()},
        example={call.path: call.example_input() for call in calls},
        findings=judge(case, thorough=thorough),
        notes=notes,
        loss=value,
        memory=memory,
        spectrum=spectrum,
        lyapunov=exponents,
        training=training,
        surface=surface,
    )


def _of_weights(every: list[Unrolled], number: Callable[[Tensor], float]) -> dict[str, float]:
    """A number of the recurrent weights of each layer, direction and gate."""
    found = {}
    for each in every:
        gates = each.layer.cell.gates
        name = join(each.name.removesuffix(each.label).rstrip("."), f"weight_hh_{each.label}")
        blocks = getattr(each.layer, f"weight_hh_{each.label}").chunk(len(gates))
        for gate, block in zip(gates, blocks, strict=True):
            if each.layer.proj_size:  # a step multiplies with both: h = W_hr u goes into W_hh
                block = block @ getattr(each.layer, f"weight_hr_{each.label}")
            found[f"{name}.{gate}" if len(gates) > 1 else name] = number(block)
    return found
