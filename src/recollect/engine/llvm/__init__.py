"""The CPU backend: a cell's graph printed into vector IR inside a hand-written loop over time. Torch-free."""
