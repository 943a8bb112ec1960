"""In which precision kernels multiply."""

from __future__ import annotations

import torch

from recollect.engine.llvm.machine import host
from recollect.engine.settings import Chooser, Setting, as_traced
from recollect.errors import InputError

PRECISIONS = ("float32", "bfloat16")

_precision = Setting("precision", "float32")


class set_precision(Chooser):  # noqa: N801  (used as a function; an object so that `with` can take it)
    """Choose in which precision float32 layers multiply in this process, or in a ``with`` block alone.

    With ``"bfloat16"`` the operands of matrix products (x, h and the weights, and in the backward pass the gradients
    of the pre-activations) are rounded to bfloat16, to nearest even, as they are read. Sums, equations and states stay
    in float32, and so do parameters, inputs, outputs and gradients, which differ from those of ``"float32"`` by some
    thousandths of their norm. bfloat16 has the range of float32, so that no loss needs to be scaled.

    It is for the llvm backend: where another one serves a call, that computes in float32, and ``layer.backend_for(x)``
    says so. So do double backward, `recollect.stream` and `recollect.diagnose`. Layers in other dtypes are not
    affected. A backward pass uses what its forward pass chose, and a graph of ``torch.compile`` or ``torch.export``
    what was chosen when it was traced. A block counts in its own thread or async task, see `recollect.set_backend`.

    Args:
        name: ``"float32"``, which every process begins with, or ``"bfloat16"``.

    Raises:
        InputError: there is no such precision.
        BackendError: this CPU has no instructions for bfloat16 (AVX512-BF16).

    Example:
        >>> recollect.set_precision("bfloat16")         # from here on
        >>> with recollect.set_precision("float32"):    # only in here
        ...     y, state = layer(x)
    """

    _setting = _precision

    def __init__(self, name: str) -> None:
        if name not in PRECISIONS:
            raise InputError("there is no such precision", given=repr(name), expected=", ".join(PRECISIONS))
        if name == "bfloat16":
            host().check_bfloat16()
        super().__init__(name)


def is_bfloat16(dtype: torch.dtype) -> bool:
    """Whether layers of that dtype are to multiply in bfloat16."""
    return dtype == torch.float32 and as_traced(_precision, _precision.latest) == "bfloat16"
