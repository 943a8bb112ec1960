"""Ours beside its peers, measured in turn in one process: what `recollect bench` and ``make bench`` run."""
