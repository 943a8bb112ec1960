"""The cells that come with Recollect: each is one function, with its equations and source in the docstring."""

from recollect.cells.cell import Cell
from recollect.cells.cifg_lstm import cifg_lstm
from recollect.cells.gru import gru
from recollect.cells.lstm import lstm
from recollect.cells.mgu import mgu
from recollect.cells.peephole_lstm import peephole_lstm
from recollect.cells.rnn import rnn_relu, rnn_tanh
from recollect.cells.slstm import slstm

__all__ = ["cifg_lstm", "gru", "lstm", "mgu", "peephole_lstm", "rnn_relu", "rnn_tanh", "slstm"]


def by_name(name: str) -> Cell:
    """Return the cell of this package that is called ``name``.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    import difflib

    from recollect.errors import InputError

    if name in __all__:
        return globals()[name]
    near = difflib.get_close_matches(name, __all__, 1)
    raise InputError(
        f"there is no cell called {name!r}",
        given=name,
        expected=", ".join(__all__),
        remedy=f"did you mean {near[0]!r}?" if near else "write your own with recollect.cell",
    )
