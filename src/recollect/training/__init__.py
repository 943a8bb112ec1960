"""Learning: windows, truncated backpropagation, clipping and an explicit loop, for any torch module."""

from recollect.training.checkpoint import Checkpoints
from recollect.training.clip import Clipped, ClippedValues, clip_by_global_norm, clip_by_value
from recollect.training.evaluation import evaluate
from recollect.training.history import Evaluation, History
from recollect.training.loop import train
from recollect.training.observers import Observer, ProgressBar, StopTraining
from recollect.training.records import HistoryFile, TensorBoard
from recollect.training.tbptt import detach_state, tbptt
from recollect.training.windows import sliding_windows, split_by_time

__all__ = [
    "Checkpoints",
    "Clipped",
    "ClippedValues",
    "Evaluation",
    "History",
    "HistoryFile",
    "Observer",
    "ProgressBar",
    "StopTraining",
    "TensorBoard",
    "clip_by_global_norm",
    "clip_by_value",
    "detach_state",
    "evaluate",
    "sliding_windows",
    "split_by_time",
    "tbptt",
    "train",
]
