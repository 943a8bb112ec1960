"""The random generators that a training run draws from: seeded for it, and remembered by its checkpoints."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recollect.training._arguments import whole_number

# Where a DataLoader and its parts keep each other.
_PARTS = ("sampler", "batch_sampler", "dataset")


class Generators:
    """PyTorch's generators on the devices in use, those of the data, and Python's and NumPy's global ones.

    Args:
        parameters: what is trained; its CUDA devices count.
        **sources: DataLoaders and the like. Every ``torch.Generator`` that is an attribute of one, of its
            sampler, batch sampler or dataset counts.
    """

    def __init__(self, parameters: Iterable[Tensor], **sources: object) -> None:
        self._torch = {"cpu": torch.default_generator}
        for device in cuda_devices(parameters):
            self._torch[f"cuda:{device}"] = torch.cuda.default_generators[device]
        seen: set[int] = set()
        for name, source in sources.items():
            self._torch.update(_find(source, name, seen))

    @property
    def names(self) -> list[str]:
        return sorted(self._torch)

    def state_of_torch(self) -> dict[str, Any]:
        """The state of PyTorch's generators alone, for `restore`; a hundred times as fast as all, by NumPy."""
        return {name: generator.get_state() for name, generator in self._torch.items()}

    def state(self) -> dict[str, Any]:
        """The state of all generators, for `restore`."""
        state = self.state_of_torch()
        state["numpy"] = _without_arrays(np.random.get_state(legacy=False))
        state["python"] = random.getstate()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put the generators into the state that `state` or `state_of_torch` returned."""
        for name, generator in self._torch.items():
            generator.set_state(state[name])
        if "numpy" in state:
            np.random.set_state(state["numpy"])
            random.setstate(state["python"])


def _without_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_arrays(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def cuda_devices(parameters: Iterable[Tensor]) -> list[int]:
    return sorted({parameter.get_device() for parameter in parameters if parameter.is_cuda})


@contextlib.contextmanager
def seeded(seed: int | None, parameters: list[Tensor]) -> Iterator[None]:
    """Seed the generators that these parameters' devices use, and put their states back afterwards."""
    if seed is None:
        yield
        return
    seed = whole_number("seed", seed, at_least=0)
    devices = cuda_devices(parameters)
    with torch.random.fork_rng(devices, device_type="cuda"):
        # torch.manual_seed would reach every device there is, and these are the ones that are put back.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def _find(source: object, name: str, seen: set[int]) -> Iterator[tuple[str, torch.Generator]]:
    if id(source) in seen:
        return
    seen.add(id(source))
    for attribute, value in getattr(source, "__dict__", {}).items():
        if isinstance(value, torch.Generator) and id(value) not in seen:
            seen.add(id(value))
            yield f"{name}.{attribute}", value
        elif attribute in _PARTS:
            yield from _find(value, f"{name}.{attribute}", seen)
