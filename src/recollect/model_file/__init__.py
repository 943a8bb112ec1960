"""Models in files: safetensors, one JSON header, no pickle. Importing and reading need no torch."""

from recollect.model_file.container import read_model, require_kind, write_model
from recollect.model_file.modules import load, pack_module, save, unpack_module

__all__ = ["load", "pack_module", "read_model", "require_kind", "save", "unpack_module", "write_model"]
