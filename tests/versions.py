"""Which torch the tests run with, for what its releases do otherwise."""

from __future__ import annotations

import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
