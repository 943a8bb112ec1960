"""All weights of a model as one vector, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recollect.errors import InputError


class Weights:
    """The parameters of a model as one vector [P], in the order of ``model.parameters()``.

    Args:
        model: whose parameters; `put` writes into them.

    Attributes:
        tensors: the parameters by name, a shared one once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors = dict(model.named_parameters())

    def get(self) -> Tensor:
        """[P] the present values."""
        return _join(self.tensors)

    def put(self, vector: Tensor) -> None:
        """Make [P] the present values."""
        with torch.no_grad():
            for tensor, part in zip(self.tensors.values(), self.split(vector), strict=True):
                tensor.copy_(part)

    def split(self, vector: Tensor) -> list[Tensor]:
        """[P] as tensors of the parameters' shapes."""
        parts = vector.split([tensor.numel() for tensor in self.tensors.values()])
        return [part.view(tensor.shape) for part, tensor in zip(parts, self.tensors.values(), strict=True)]

    def read(self, what: str, values: Any, *, missing: bool = False) -> Tensor:
        """[P] of a ``state_dict``, or of a tensor that is such a vector already.

        Args:
            what: how an error calls it.
            values: names that are no parameter's, as those of buffers, are passed over.
            missing: a parameter may be missing, and counts as 0; a name must then be one of a parameter.

        Raises:
            InputError: names or shapes are not the model's, or a value is not finite.
        """
        if isinstance(values, Tensor):
            size = sum(tensor.numel() for tensor in self.tensors.values())
            if values.numel() != size:
                raise InputError(
                    f"{what} does not fit the model",
                    given=f"a tensor of {values.numel()} values",
                    expected=f"{size}, those of torch.nn.utils.parameters_to_vector(model.parameters())",
                )
            vector = values.detach().flatten().cpu().double()
        elif isinstance(values, Mapping):
            vector = _join({name: self._part(what, values, name, missing) for name in self.tensors})
            if missing and (unknown := [name for name in values if name not in self.tensors]):
                raise InputError(
                    f"{what} names what is no parameter", given=unknown, expected=f"some of {', '.join(self.tensors)}"
                )
        else:
            raise InputError(f"{what} cannot be used", given=type(values).__name__, expected="a state_dict or a tensor")
        if not torch.isfinite(vector).all():
            raise InputError(f"{what} holds numbers that are not finite", remedy="leave it out")
        return vector

    def _part(self, what: str, values: Mapping[str, Any], name: str, missing: bool) -> Tensor:
        shape = self.tensors[name].shape
        if missing and name not in values:
            return torch.zeros(shape)
        found = values.get(name)
        if not isinstance(found, Tensor) or found.shape != shape:
            given = tuple(found.shape) if isinstance(found, Tensor) else "none" if found is None else type(found)
            raise InputError(
                f"{what} does not fit the model", given=f"{name}: {given}", expected=f"shape {tuple(shape)}"
            )
        return found


def _join(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().cpu().double() for tensor in tensors.values()])
