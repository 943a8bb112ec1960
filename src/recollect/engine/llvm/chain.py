"""A chain of kernels as one call: each layer once, from a NumPy array to a NumPy array.

A step of a small network takes about a microsecond, less than ctypes and NumPy need to call it. So what
Python calls is written in IR too: a function of CPython's fast calling convention (``METH_FASTCALL``, part of its
stable ABI), which reads an array's fields and makes a new array as NumPy's C API does for compiled extensions.
`sees_arrays` makes sure that the fields are there; elsewhere the chain is called with addresses.

    call(self, (x,), 1):   x is an array just as the chain takes it?  ->  y = new array; run(control, x, y); return y
                           else return None: it may still be something that can be converted
    run(control, x, y):    each kernel's ``advance`` with its arguments of this turn; then it is the other turn

Both hold the interpreter's lock from beginning to end, so of two Python threads one steps after the other.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir

from recollect.engine.llvm.fixed import fixed_code
from recollect.engine.llvm.machine import Code
from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter, Value

# What the functions know about a chain, each in 64 bits. An array is taken if its type and dtype are these objects
# and it has so many ``axes``, of which the first and last have these lengths. ``new``, ``number_type`` and ``shape``
# make the output. ``links`` is the address of [length][3] numbers: a kernel's entry and the addresses of its
# arguments in even and odd turns.
FIELDS = (
    "array_type", "dtype", "axes", "first", "last", "new", "number_type", "shape", "none",
    "turn", "x_slot", "y_slot", "length", "links",
)  # fmt: skip
_LINK = 3

_I32 = ir.IntType(32)
_METH_FASTCALL = 0x80
_NEW = 93  # where NumPy's table of functions has PyArray_New
_WHOLE = 0x1 | 0x100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED


class _Array(ctypes.Structure):
    """``PyArrayObject_fields`` of NumPy's ABI, as far as it is read here."""

    _fields_ = (
        ("count", ctypes.c_ssize_t), ("type", ctypes.c_void_p), ("data", ctypes.c_void_p), ("axes", ctypes.c_int),
        ("lengths", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("base", ctypes.c_void_p),
        ("dtype", ctypes.c_void_p), ("flags", ctypes.c_int),
    )  # fmt: skip


class _Method(ctypes.Structure):
    """``PyMethodDef`` of CPython's stable ABI."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    )  # fmt: skip


class Chain:
    """Kernels that run one after the other, the first one's output being the next one's input.

    Args:
        links: each kernel's entry and its arguments in even and in odd turns; all 64 bits.
        x_slot, y_slot: where the first kernel's arguments have the input and the last one's the output.
        shape: of the input, and of the output.
        dtype: of both.
        memory: whatever the links point to.

    Attributes:
        run: ``run(x, y)`` with the addresses of an input and an output as the chain takes and makes them.
        call: ``call(x)`` returns the output for an array just as the chain takes it, and None for anything else.
        turn: 0 or 1, which arguments come next.
    """

    def __init__(
        self,
        links: Sequence[tuple[int, int, int]],
        x_slot: int,
        y_slot: int,
        shape: tuple[tuple[int, ...], tuple[int, ...]],
        dtype: np.dtype,
        memory: Sequence[object],
    ) -> None:
        code = _code()
        table, out = np.array(links, dtype=np.int64), np.array(shape[1], dtype=np.intp)
        self._values = dict.fromkeys(FIELDS, 0) | {
            "dtype": id(dtype), "axes": len(shape[0]), "first": shape[0][0], "last": shape[0][-1],
            "array_type": id(np.ndarray) if sees_arrays() else 0, "new": _array_api()[_NEW] or 0,
            "number_type": dtype.num, "shape": out.ctypes.data, "none": id(None), "x_slot": x_slot, "y_slot": y_slot,
            "length": len(links), "links": table.ctypes.data,
        }  # fmt: skip
        self._control = np.array([self._values[name] for name in FIELDS], dtype=np.int64)
        address = self._control.ctypes.data
        run = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(code.address("run_chain"))
        self.run: Callable[[int, int], None] = lambda x, y: run(address, x, y)
        method = _Method(b"call", code.address("call_chain"), _METH_FASTCALL, None)
        # A thread may hold the function a moment longer than its owner lives: so it owns what it uses.
        used = (method, self._control, table, out, dtype, *memory)
        self.call: Callable[[Any], np.ndarray | None] = _builtin(ctypes.addressof(method), address, used)

    @property
    def turn(self) -> int:
        return int(self._control[FIELDS.index("turn")])

    def open(self, wanted: bool) -> None:
        """Let `call` take arrays, or none, so that nobody steps while the states are looked at."""
        self._control[FIELDS.index("array_type")] = self._values["array_type"] if wanted else 0


@lru_cache(maxsize=1)
def sees_arrays() -> bool:
    """Whether an array's fields are where NumPy's ABI has them in CPython as it is usually built."""
    for array in (np.zeros((3, 2), np.float32), np.zeros((2, 4))[:, ::2]):
        found = _Array.from_address(id(array))
        lengths = (ctypes.c_ssize_t * 2).from_address(found.lengths or id(found)) if found.axes == 2 else ()
        expected = (id(np.ndarray), array.ctypes.data, id(array.dtype), array.flags.c_contiguous)
        if (found.type, found.data, found.dtype, found.flags & _WHOLE == _WHOLE) != expected:
            return False
        if tuple(lengths) != array.shape:
            return False
    return True


def _array_api() -> Any:
    """NumPy's table of functions, as compiled extensions find it."""
    _multiarray_umath: Any = importlib.import_module("numpy._core._multiarray_umath")

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address: Any = pointer(_multiarray_umath._ARRAY_API, None)
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))


_builtin = ctypes.pythonapi.PyCFunction_NewEx
_builtin.restype, _builtin.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.py_object)


@lru_cache(maxsize=1)
def _code() -> Code:
    return fixed_code("chain", write)


def write() -> ir.Module:
    """Write the module with ``run_chain`` and ``call_chain``."""
    module = ir.Module()
    _write_call(module, _write_run(module))
    return module


def _begin(module: ir.Module, name: str, result: ir.Type, *types: ir.Type) -> Emitter:
    return Emitter(ir.Function(module, ir.FunctionType(result, types), name), "float32", 1)


def _field(e: Emitter, control: Value, name: str) -> Value:
    return e.load_integer(control, e.integer(FIELDS.index(name)))


def _store_integer(e: Emitter, value: Value, pointer: Value, index: Value) -> None:
    e.builder.store(value.ir, e.builder.gep(pointer.ir, [index.ir], source_etype=I64))


def _pointer(e: Emitter, address: Value) -> Value:
    return Value(e.builder, e.builder.inttoptr(address.ir, POINTER))


def _write_run(module: ir.Module) -> ir.Function:
    e = _begin(module, "run_chain", VOID, POINTER, I64, I64)
    control, x, y = e.arguments
    turn, length = (_field(e, control, name) for name in ("turn", "length"))
    links = _pointer(e, _field(e, control, "links"))

    def arguments(link: Value | int) -> Value:
        return _pointer(e, e.load_integer(links, e.integer(_LINK) * link + 1 + turn))

    _store_integer(e, x, arguments(0), _field(e, control, "x_slot"))
    _store_integer(e, y, arguments(length - 1), _field(e, control, "y_slot"))
    with e.loop(0, length) as link:
        e.call_address(e.load_integer(links, link * _LINK), ir.FunctionType(VOID, [POINTER]), arguments(link).ir)
    _store_integer(e, e.integer(1) - turn, control, e.integer(FIELDS.index("turn")))
    e.builder.ret_void()
    return e.function


def _write_call(module: ir.Module, run: ir.Function) -> None:
    e = _begin(module, "call_chain", POINTER, POINTER, POINTER, I64)
    of_python = {
        name: ir.Function(module, ir.FunctionType(result, [POINTER]), name)
        for name, result in (("PyLong_AsVoidPtr", POINTER), ("Py_IncRef", VOID))
    }
    owner, given, count = e.arguments
    control = e.call(of_python["PyLong_AsVoidPtr"], owner)
    none = _field(e, control, "none")
    result = e.variable(I64, none)

    def of_array(array: Value, name: str) -> Value:
        field = getattr(_Array, name)
        place = e.builder.gep(array.ir, [e.integer(field.offset).ir], source_etype=ir.IntType(8))
        loaded = e.builder.load(place, typ=_I32 if field.size == 4 else I64)
        return Value(e.builder, e.builder.sext(loaded, I64) if field.size == 4 else loaded)

    def fits(found: Value, name: str) -> Value:
        return found.compare("==", _field(e, control, name))

    with e.when(count.compare("==", 1)):
        x = _pointer(e, e.load_integer(given, e.integer(0)))
        with e.when(fits(of_array(x, "type"), "array_type")):
            whole = (of_array(x, "flags") & _WHOLE).compare("==", _WHOLE)
            # The lengths are read only once it is known how many there are.
            with e.when(whole & fits(of_array(x, "dtype"), "dtype") & fits(of_array(x, "axes"), "axes")):
                lengths, last = _pointer(e, of_array(x, "lengths")), _field(e, control, "axes") - 1
                first_fits = fits(e.load_integer(lengths, e.integer(0)), "first")
                with e.when(first_fits & fits(e.load_integer(lengths, last), "last")):
                    y = _new_array(e, control)
                    result.set(Value(e.builder, e.builder.ptrtoint(y.ir, I64)))
                    with e.when(result.get().compare("!=", 0)):  # else an exception is set
                        e.call(run, control, of_array(x, "data"), of_array(y, "data"))
    with e.when(result.get().compare("==", none)):
        e.call(of_python["Py_IncRef"], _pointer(e, none))
    e.builder.ret(_pointer(e, result.get()).ir)


def _new_array(e: Emitter, control: Value) -> Value:
    """``PyArray_New(type, axes, shape, number type, no strides, no memory, 0, 0, no base)``; 0 where memory ends."""
    kind = ir.FunctionType(POINTER, [POINTER, _I32, POINTER, _I32, POINTER, POINTER, _I32, _I32, POINTER])
    array_type, shape = (_pointer(e, _field(e, control, name)) for name in ("array_type", "shape"))
    axes, number_type = (e.builder.trunc(_field(e, control, name).ir, _I32) for name in ("axes", "number_type"))
    nothing, zero = ir.Constant(POINTER, None), ir.Constant(_I32, 0)
    return e.call_address(
        _field(e, control, "new"), kind,
        array_type.ir, axes, shape.ir, number_type, nothing, nothing, zero, zero, nothing,
    )  # fmt: skip
