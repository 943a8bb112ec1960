"""States that grow without end when a network runs on."""

from __future__ import annotations

import math

from recollect.diagnosis.findings.case import Case, Place, carry_of
from recollect.diagnosis.findings.finding import Finding
from recollect.diagnosis.flow import Curve, spectral_radius
from recollect.diagnosis.free_run import BLOCKS, free_run

# After all blocks a drifting state is so many times as large as after the first, and still growing by so much.
_GROWN, _STILL_GROWING = 3.0, 1.2


def state_drift(case: Case) -> list[Finding]:
    """``"state_drift"``: after running on over ten times the sequence a state is three times as large as after it, and
    still grows.
    """
    found = []
    places = {each.name: place for each, place in case.every}
    for call in case.calls:
        for name, norms in free_run(call).items():
            place = places[name.rpartition(".")[0]]
            if _drifts(norms):
                steps = place.unrolled.lags
                after = (
                    f"to {norms[-1]:.3g} after {BLOCKS * steps}" if math.isfinite(norms[-1]) else "beyond all numbers"
                )
                evidence = (
                    f"when its input goes on and on, the norm of {name} grows from {norms[0]:.3g} after {steps} steps "
                    f"{after}, and goes on growing"
                )
                found.append(Finding("state_drift", "warning", evidence, _hold(place), "model"))
                break  # what the other states of the layer do follows from it
    return found


def _drifts(norms: Curve) -> bool:
    if not all(map(math.isfinite, norms)):
        return True
    return norms[-1] > _GROWN * norms[0] and norms[-1] > _STILL_GROWING * norms[(2 * len(norms)) // 3 - 1]


def _hold(place: Place) -> str:
    """Code that makes the state forget: by its gate, or by recurrent weights that do not amplify."""
    carry, layer = carry_of(place.unrolled), place.unrolled.layer
    if carry is not None and carry.gate == "f" and carry.opens and layer.bias:
        return "\n".join(["# let the cell forget, then train again", *place.initialise("forget_bias_({}, 1.0)")])
    weight = getattr(layer, f"weight_hh_{place.unrolled.label}")
    radius = max(spectral_radius(block) for block in weight.chunk(len(layer.cell.gates)))
    return "\n".join(
        [
            f"# the recurrent weights amplify: their spectral radius is {radius:.3g}",
            "with torch.no_grad():",
            f"    {place.parameter('weight_hh')}.mul_({min(0.95 / radius, 0.95):.3g})",
        ]
    )
