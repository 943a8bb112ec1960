"""Ours beside its peers, measured in turn in one process: ``make bench``."""
