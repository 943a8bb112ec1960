"""What `set_backend` and `set_precision` choose, for the process and for a block, whoever takes turns with whom."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import queue
import sys
import threading

import pytest
import torch

import recollect
from recollect import nn
from recollect.engine import precision, settings
from recollect.engine.dispatch import are_kernels_chosen
from recollect.engine.llvm.machine import host
from recollect.engine.precision import is_bfloat16
from recollect.errors import InputError

LAYER, X = nn.LSTM(2, 3), torch.zeros(4, 1, 2)


def served_by():
    name = LAYER.backend_for(X).partition(":")[0]
    assert are_kernels_chosen() == (name == "llvm")
    return name


def multiplied_in():
    return "bfloat16" if is_bfloat16(torch.float32) else "float32"


# The function, what is chosen, what tells so, and what every process begins with. (llvm is what "auto" takes.)
SETTINGS = {
    "set_backend": (recollect.set_backend, ("reference", "torch", "llvm"), served_by, "llvm"),
    "set_precision": (recollect.set_precision, ("bfloat16", "float32", "bfloat16"), multiplied_in, "float32"),
}
every_setting = pytest.mark.parametrize(("choose", "names", "look", "first"), SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(autouse=True)
def _able_machine(monkeypatch):
    machine = dataclasses.replace(host(), bfloat16="emulated")
    monkeypatch.setattr(precision, "host", lambda: machine)


class Worker:
    """A thread of its own that does what it is told, step by step."""

    def __init__(self):
        self._tasks, self._results = queue.Queue(), queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self):
        while (task := self._tasks.get()) is not None:
            try:
                self._results.put((task(), None))
            except BaseException as error:
                self._results.put((None, error))

    def do(self, task):
        self._tasks.put(task)
        result, error = self._results.get(timeout=30)
        if error is not None:
            raise error
        return result

    def end(self):
        self._tasks.put(None)
        self._thread.join()


class Block:
    """A ``with`` block in its three moments, as Python goes through them."""

    def __init__(self, worker, choose, name, look):
        self.worker, self.choose, self.name, self.look = worker, choose, name, look
        self.moments = iter((self._call, self._enter, self._exit))

    def advance(self):
        next(self.moments)()

    def _call(self):
        self.manager = self.worker.do(lambda: self.choose(self.name))

    def _enter(self):
        self.worker.do(self.manager.__enter__)
        assert self.worker.do(self.look) == self.name

    def _exit(self):
        assert self.worker.do(self.look) == self.name
        self.worker.do(lambda: self.manager.__exit__(None, None, None))


@pytest.fixture(scope="module")
def workers():
    made = Worker(), Worker(), Worker()
    yield made
    for worker in made:
        worker.end()


@every_setting
@pytest.mark.parametrize("plain_at", [None, *range(7)])
def test_blocks_of_two_threads_in_any_order_leave_what_plain_calls_chose(choose, names, look, first, workers, plain_at):
    """In each of the 20 orders of two blocks' three moments, with a plain call of a third thread at each place."""
    first_name, second_name, plain_name = names
    for places in itertools.combinations(range(6), 3):
        choose(first)
        blocks = Block(workers[0], choose, first_name, look), Block(workers[1], choose, second_name, look)
        left = first
        for place in range(7):
            if place == plain_at:
                workers[2].do(lambda: choose(plain_name) and None)
                left = plain_name
            if place < 6:
                blocks[place not in places].advance()
        for worker in workers:
            assert worker.do(look) == left, places
        assert look() == left


@every_setting
def test_a_block_is_seen_by_its_own_thread_alone(choose, names, look, first, workers):
    with choose(names[0]):
        assert look() == names[0]
        assert workers[0].do(look) == first


@every_setting
def test_nesting_exceptions_and_one_object_for_several_blocks(choose, names, look, first):
    chosen = choose(names[0])
    assert look() == names[0]  # until a block takes it
    for _ in range(2):
        with chosen:
            with choose(first), chosen:
                assert look() == names[0]
            with choose(first):
                with pytest.raises(KeyError), chosen:
                    raise KeyError
                assert look() == first
            assert look() == names[0]
        assert look() == first


@every_setting
def test_a_plain_call_inside_a_block_counts_after_it(choose, names, look, first, workers):
    with choose(first):
        choose(names[0])
        assert look() == first
        assert workers[0].do(look) == names[0]
    assert look() == names[0]


@every_setting
def test_one_object_in_the_blocks_of_two_threads(choose, names, look, first, workers):
    shared = choose(names[0])
    for worker in workers[:2]:
        worker.do(shared.__enter__)
    workers[0].do(lambda: shared.__exit__(None, None, None))
    assert [worker.do(look) for worker in workers] == [first, names[0], first]
    workers[1].do(lambda: shared.__exit__(None, None, None))
    assert workers[1].do(look) == first


@every_setting
def test_async_tasks_choose_for_themselves(choose, names, look, first):
    async def task(name):
        for _ in range(3):
            with choose(name):
                await asyncio.sleep(0)
                assert look() == name
                assert await asyncio.to_thread(look) == name
            await asyncio.sleep(0)
            assert look() == first

    async def all_tasks():
        await asyncio.gather(*map(task, names))

    asyncio.run(all_tasks())
    assert look() == first


@every_setting
def test_generators_that_take_turns_leave_nothing(choose, names, look, first):
    def block(name):
        with choose(name):
            yield

    one, other = block(names[0]), block(names[1])
    next(one), next(other)
    one.close()  # not the one that began last
    assert look() == names[1]
    other.close()
    assert look() == first


@every_setting
def test_a_block_that_never_begins_or_fails_to_leaves_no_more_than_a_plain_call(choose, names, look, first):
    with contextlib.ExitStack() as stack:
        stack.enter_context(choose(names[0]))
        assert look() == names[0]
    assert look() == first
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: choose(names[0]).__enter__(), 0)
    assert look() == names[0]  # as a plain call left it
    choose(first)
    assert look() == first


def interrupted(function, moment, names=("__enter__",)):
    """Call a function and interrupt it at a moment of the functions called so, of settings, and all that they call."""
    moments, depth = itertools.count(), 0

    def trace(frame, event, _):
        nonlocal depth
        ours = frame.f_code.co_filename == settings.__file__
        if event == "call" and not depth and not (ours and frame.f_code.co_name in names):
            return None
        depth += (event == "call") - (event == "return")
        if next(moments) == moment:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)


@every_setting
def test_an_interrupt_at_any_moment_of_a_block_leaves_no_block(choose, names, look, first):
    def use():
        with choose(names[0]), choose(names[1]):
            pass

    @choose(names[0])
    def decorated():
        pass

    for function in (use, decorated):
        for moment in itertools.count():
            with contextlib.suppress(KeyboardInterrupt):
                interrupted(function, moment, ("__enter__", "__exit__"))
                break
            choose(first)  # in place of what a plain call would leave
            assert look() == first
        assert moment > 30
    assert look() == first


@every_setting
def test_a_decorated_function_is_a_block(choose, names, look, first):
    @choose(names[0])
    def inner(argument):
        """Says it."""
        return argument, look()

    assert look() == first
    assert inner("a") == ("a", names[0])
    assert (inner.__name__, inner.__doc__) == ("inner", "Says it.")
    assert look() == first
    with pytest.raises(InputError, match="with recollect"):

        @choose(names[0])
        def later():
            yield look()

    assert look() == first


@every_setting
def test_ever_so_many_calls_are_not_kept(choose, names, look, first):
    for _ in range(100):
        choose(names[0])
        with choose(names[1]):
            pass
        choose(first)
    gc.collect()
    assert len(choose._setting.calls) <= 3
    assert look() == first


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler
def test_a_compiled_layer_is_traced_anew_where_the_backend_changes():
    """A graph for the kernels has a tape, and one for other backends has none."""
    torch.compiler.reset()
    layer, x, graphs = nn.LSTM(2, 3), torch.randn(4, 1, 2, requires_grad=True), []
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    compiled(x)
    with recollect.set_backend("reference"):
        compiled(x)
    compiled(x)
    recollect.set_backend("reference")
    compiled(x)
    tapes = [node.args[-1] for graph in graphs for node in graph.graph.nodes if "recurrent" in str(node.target)]
    assert tapes == [True, False]
    torch.compiler.reset()
