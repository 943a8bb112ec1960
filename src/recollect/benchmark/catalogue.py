"""All that is measured. A new subject is one more entry: see `Subject`."""

from __future__ import annotations

from recollect.benchmark import features, jax_peer, layers, onnx_peer
from recollect.benchmark.subject import Subject


def subjects(*, full: bool = False, only: str = "") -> list[Subject]:
    """The subjects in the order of the tables.

    Args:
        full: with the longest sequences.
        only: those whose title or mode contains this, in any case.
    """
    everything = [
        *layers.against_torch(),
        *jax_peer.against_jax(),
        *onnx_peer.against_onnx(),
        *layers.against_loops(),
        *features.other_cells(),
        *features.unequal_lengths(full),
        *features.options(),
    ]
    return [each for each in everything if only.lower() in f"{each.title} {each.mode}".lower()]
