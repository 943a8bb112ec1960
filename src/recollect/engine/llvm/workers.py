"""A team of threads of our own, for a process without OpenMP: the stepper's.

It is entered as OpenMP's is, through three functions, so a kernel does not know whose team it runs on:

    parallel(region, arguments, count, flags)    region(arguments) is called ``count`` times, for a part each
    thread_num()                                 which part this is
    num_threads()                                how many there are

A part is not a thread: whoever is free takes the next one, so a thread that the system has put aside keeps nobody
waiting but for the part that it is at. (Hence a region may have no barrier inside; a kernel's one step has none.)

There is one team in a process, and one region at a time: who enters holds the interpreter's lock. Workers wait in
jitted code: they look for parts for some hundred microseconds, then they sleep in the kernel (a futex) and use no
processor. To wake one can take longer than a region does, so it is done only where regions follow on each other fast
enough to find it awake; until then who entered takes all parts. Workers are daemons, so they hold up no exit.

A forked child has the team's memory and none of its threads. Linux wipes that memory in the child
(``MADV_WIPEONFORK``), whoever forked and however; a team of size 0 is the thread that enters alone.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from recollect.engine.llvm.fixed import fixed_code
from recollect.engine.llvm.machine import Code
from recollect.engine.llvm.team import Team
from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter, Value

_LINE = 8  # numbers of 64 bits
# Where the team's numbers are; what different threads write lies on different cache lines.
_PLACES = {
    "generation": 0,  # goes up with every region
    "left": 1,  # parts that nobody has taken; below 0 where several found none
    "region": _LINE, "arguments": _LINE + 1, "count": _LINE + 2, "size": _LINE + 3, "key": _LINE + 4,
    "limit": _LINE + 5,  # workers from this index on take no part
    "done": 2 * _LINE,  # parts
    "sleepers": 3 * _LINE,
    "arrived": 4 * _LINE,
    "ended": 5 * _LINE,  # when the last region did, in nanoseconds
}  # fmt: skip
PARTS = 2  # for each thread of a team
_PATIENCE = 10_000  # pauses of a worker before it sleeps: 200 to 500 microseconds
_SOON = 100_000  # nanoseconds; a worker that was woken still looks when the next region comes after so long
_WAIT, _WAKE, _ALL = 128, 129, 2**31 - 1  # FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE, linux/futex.h
_WIPE_ON_FORK = 18  # linux/mman.h
# By architecture: the number of the futex call, and the intrinsic that says that a thread only waits.
_KNOWN = {"x86_64": (202, "llvm.x86.sse2.pause", ()), "aarch64": (98, "llvm.aarch64.hint", (1,))}

_I32 = ir.IntType(32)
_TIME = ir.LiteralStructType([I64, I64])  # struct timespec
_MONOTONIC = 1  # CLOCK_MONOTONIC, linux/time.h
_REGION = ir.FunctionType(VOID, [POINTER])


class Workers:
    """The team of this process."""

    def __init__(self) -> None:
        self._code: Code | None = None
        self._memory: np.ndarray | None = None

    def team(self, wanted: int) -> Team:
        """A team of as many threads as are wanted, or as can be had; the caller holds a lock of its own."""
        if wanted <= 1:
            return Team(0, 0, 0, "one thread is enough")
        if not sys.platform.startswith("linux") or _architecture() not in _KNOWN:
            return Team(0, 0, 0, f"no threads of our own on {sys.platform} {_architecture()} yet")
        if self._memory is None:
            self._begin()
        if self._code is None or self._memory is None or not self._memory[_PLACES["key"]]:
            return Team(0, 0, 0, "threads do not survive a fork")
        self._grow(self._memory, self._code, wanted)
        parallel, thread_num, num_threads = (
            self._code.address(f"team_{name}") for name in ("parallel", "thread_num", "num_threads")
        )
        return Team(parallel, thread_num, num_threads, "")

    def _begin(self) -> None:
        pages = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            pages.madvise(_WIPE_ON_FORK)
        except OSError:  # before Linux 4.14: without it a child could not tell
            return
        key = ctypes.c_uint()
        if ctypes.CDLL(None).pthread_key_create(ctypes.byref(key), None):
            return
        code = fixed_code("workers", write)
        self._memory, self._code = np.frombuffer(pages, dtype=np.int64), code
        # Workers may still look at these when Python takes its objects apart at the end.
        for each in (self._memory, code):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
        self._memory[_PLACES["key"]] = key.value + 1  # 0 is what a wiped page has
        self._memory[_PLACES["size"]] = 1
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("team_begin"))(self._memory.ctypes.data)

    def _grow(self, memory: np.ndarray, code: Code, wanted: int) -> None:
        work = ctypes.CFUNCTYPE(None, ctypes.c_int64)(code.address("team_work"))
        for index in range(int(memory[_PLACES["size"]]), wanted):
            thread = threading.Thread(target=work, args=(index,), name=f"recollect-{index}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # as many threads as the system allows: the team stays as it is
                return
            # A thread needs the interpreter to begin, and who enters a region holds it: only who has arrived counts.
            while memory[_PLACES["arrived"]] < index:
                time.sleep(1e-5)
            memory[_PLACES["size"]] = index + 1


WORKERS = Workers()


def _architecture() -> str:
    return llvm.get_default_triple().partition("-")[0]


def write() -> ir.Module:
    """Write the module: ``team_begin``, ``team_work`` and the three functions of a team."""
    module = ir.Module()
    team = ir.GlobalVariable(module, POINTER, "recollect_team")
    team.initializer, team.linkage = ir.Constant(POINTER, None), "internal"  # pyright: ignore[reportAttributeAccessIssue]

    def function(name: str, result: ir.Type, *types: ir.Type) -> _Member:
        return _Member(ir.Function(module, ir.FunctionType(result, types), name), team)

    e = function("team_begin", VOID, POINTER)
    e.builder.store(e.arguments[0].ir, team)
    e.builder.ret_void()
    take = _write_take(function("team_take", VOID))
    _write_work(function("team_work", VOID, I64), take)
    _write_parallel(function("team_parallel", VOID, POINTER, POINTER, _I32, _I32), take)
    _write_thread_num(function("team_thread_num", _I32))
    e = function("team_num_threads", _I32)
    e.builder.ret(e.builder.trunc(e.most(e.get("count"), e.integer(1)).ir, _I32))
    return module


class _Member(Emitter):
    """Writes a function that sees the team's numbers."""

    def __init__(self, function: ir.Function, team: ir.GlobalVariable) -> None:
        super().__init__(function, "float32", 1)
        self._team = team

    def place(self, name: str) -> ir.Value:
        team = self.builder.load(self._team, typ=POINTER)
        return self.builder.gep(team, [ir.Constant(I64, _PLACES[name])], source_etype=I64)

    def get(self, name: str) -> Value:
        return Value(self.builder, self.builder.load_atomic(self.place(name), "seq_cst", 8, typ=I64))

    def set(self, name: str, value: Value) -> None:
        """Plainly: others look at it once the generation has gone up, which is in order."""
        self.builder.store(value.ir, self.place(name))

    def change(self, what: str, name: str, number: Value | int) -> Value:
        """Atomically ``"add"`` or ``"xchg"`` a number; returns what was there."""
        value = number if isinstance(number, Value) else self.integer(number)
        return Value(self.builder, self.builder.atomic_rmw(what, self.place(name), value.ir, "seq_cst"))

    @contextmanager
    def loop_while(self, condition: Callable[[], Value]) -> Iterator[None]:
        head, body, done = (self.builder.append_basic_block(name) for name in ("head", "body", "done"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(condition().ir, body, done)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(head)
        self.builder.position_at_end(done)

    def of_system(self, name: str, result: ir.Type, *types: ir.Type, var_arg: bool = False) -> ir.Function:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, types, var_arg=var_arg), name)

    def futex(self, what: int, number: Value) -> None:
        """Sleep while the generation is ``number``, or wake so many that sleep. Its lower half is at its address."""
        call, *_ = _KNOWN[_architecture()]
        function = self.of_system("syscall", I64, I64, var_arg=True)
        number_32 = self.builder.trunc(number.ir, _I32)
        nothing = ir.Constant(POINTER, None)
        given = [ir.Constant(I64, call), self.place("generation"), ir.Constant(_I32, what), number_32, nothing]
        self.builder.call(function, given)

    def pause(self) -> None:
        _, name, numbers = _KNOWN[_architecture()]
        self.builder.call(self.of_system(name, VOID, *[_I32] * len(numbers)), [ir.Constant(_I32, n) for n in numbers])

    def key(self) -> Any:
        return self.builder.trunc((self.get("key") - 1).ir, _I32)

    def put_down(self, part: Value) -> None:
        """Which part this thread is at, for `thread_num`."""
        function = self.of_system("pthread_setspecific", _I32, _I32, POINTER)
        self.builder.call(function, [self.key(), self.builder.inttoptr(part.ir, POINTER)])

    @contextmanager
    def spinning(self, condition: Callable[[], Value]) -> Iterator[None]:
        """While the condition holds: pause, and run the block whenever patience ends."""
        pauses = self.variable(I64, self.integer(0))
        with self.loop_while(condition):
            pauses.set(pauses.get() + 1)
            self.pause()
            with self.when(pauses.get() > _PATIENCE):
                pauses.set(self.integer(0))
                yield

    def clock(self) -> Value:
        """The monotonic clock, in nanoseconds."""
        with self.builder.goto_entry_block():
            time = Value(self.builder, self.builder.alloca(_TIME))
        function = self.of_system("clock_gettime", _I32, _I32, POINTER)
        self.builder.call(function, [ir.Constant(_I32, _MONOTONIC), time.ir])
        return self.load_integer(time, self.integer(0)) * 1_000_000_000 + self.load_integer(time, self.integer(1))


def _write_take(e: _Member) -> ir.Function:
    """Take parts until none is left.

    The number alone says whether a part was taken, and a region lasts until all its parts are done: so whoever has
    taken one, however late, finds the region that it belongs to.
    """
    part = e.variable(I64)

    def taken() -> Value:
        part.set(e.change("add", "left", -1) - 1)
        return part.get() >= 0

    with e.loop_while(taken):
        e.put_down(part.get())
        e.call_address(e.get("region"), _REGION, e.builder.inttoptr(e.get("arguments").ir, POINTER))
        e.change("add", "done", 1)
    e.builder.ret_void()
    return e.function


def _write_work(e: _Member, take: ir.Function) -> None:
    """A worker's life."""
    (index,) = e.arguments
    seen = e.variable(I64)

    def nothing_to_do() -> Value:
        seen.set(e.get("generation"))  # first: a region that comes after this look is not slept through
        return (e.get("left") <= 0) | (index >= e.get("limit"))

    e.change("add", "arrived", 1)
    with e.loop_while(lambda: e.integer(0).compare("==", 0)):
        with e.spinning(nothing_to_do):
            e.change("add", "sleepers", 1)
            e.futex(_WAIT, seen.get())
            e.change("add", "sleepers", -1)
        e.call(take)
    e.builder.ret_void()


def _write_parallel(e: _Member, take: ir.Function) -> None:
    region, arguments, count, _ = e.arguments
    address = Value(e.builder, e.builder.ptrtoint(region.ir, I64))
    parts = Value(e.builder, e.builder.sext(count.ir, I64))
    with e.builder.if_else((e.get("size") <= 1).ir) as (alone, together):
        with alone:
            e.call_address(address, _REGION, arguments.ir)
        with together:
            e.set("region", address)
            e.set("arguments", Value(e.builder, e.builder.ptrtoint(arguments.ir, I64)))
            e.set("count", parts)
            e.set("limit", parts // PARTS)
            e.set("done", e.integer(0))
            e.change("xchg", "left", parts)
            e.change("add", "generation", 1)
            with e.when(e.get("sleepers") > 0), e.when(e.clock() - e.get("ended") < _SOON):
                e.futex(_WAKE, e.integer(_ALL))
            e.call(take)
            with e.spinning(lambda: e.get("done") < parts):
                e.builder.call(e.of_system("sched_yield", _I32), [])
            e.set("ended", e.clock())
    e.builder.ret_void()


def _write_thread_num(e: _Member) -> None:
    """The part that this thread has put down for itself; 0 where there is no team."""
    number = e.variable(_I32, Value(e.builder, ir.Constant(_I32, 0)))
    with e.when(e.get("size") > 1):
        found = e.builder.call(e.of_system("pthread_getspecific", POINTER, _I32), [e.key()])
        number.set(Value(e.builder, e.builder.trunc(e.builder.ptrtoint(found, I64), _I32)))
    e.builder.ret(number.get().ir)
