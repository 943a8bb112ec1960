"""Reading what LLVM wrote: the functions of an assembly file, and their innermost loops."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LABEL = re.compile(r"^([\w.$]+):")
_LOCAL = re.compile(r"^\.?L")
_COMMENT = re.compile(r"\s*(##|//|[#;](?!\d)(?!-)).*$")  # "#" begins a comment, and an immediate number on AArch64
_JUMP = re.compile(r"^(j\w+|b|b\.\w+|cbn?z|tbn?z|ret\w*|br)(?:\s+(.*))?$")
_ALWAYS = ("jmp", "jmpq", "b", "ret", "retq", "br")

# Addresses relative to the stack pointer; "lea" only computes one.
STACK = re.compile(r"^(?!lea).*(\(%rsp|\[sp)")
# A product that is added to an accumulator; where there is no such instruction, the product.
MULTIPLY_ADD = re.compile(r"^(vfn?m(add|sub)\d+p[sd]|vdpbf16ps|fml[as]|v?mulp[sd])\b")


class Block:
    """Instructions without a jump among them."""

    def __init__(self, label: str = "") -> None:
        self.label, self.code = label, list[str]()
        self.next: list[Block] = []


def functions(text: str) -> dict[str, list[Block]]:
    """The blocks of each function, connected."""
    found: dict[str, list[Block]] = {}
    blocks: list[Block] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label and not _LOCAL.match(label[1]):
            blocks = found[label[1].removeprefix("_")] = [Block(label[1])]
        elif label and blocks:
            blocks.append(Block(label[1]))
        elif blocks and (code := " ".join(_COMMENT.sub("", line).split())) and not code.startswith("."):
            if blocks[-1].code and _JUMP.match(blocks[-1].code[-1]):
                blocks.append(Block())
            blocks[-1].code.append(code)
    for each in found.values():
        _connect(each)
    return found


def _connect(blocks: list[Block]) -> None:
    by_label = {block.label: block for block in blocks if block.label}
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        jump = _JUMP.match(block.code[-1]) if block.code else None
        if jump and jump[2] and (target := by_label.get(jump[2].split(",")[-1].strip())):
            block.next.append(target)
        if following and not (jump and jump[1] in _ALWAYS):
            block.next.append(following)


def innermost_loops(blocks: list[Block]) -> Iterator[list[str]]:
    """The instructions of each loop that has no loop in it."""
    before: dict[Block, list[Block]] = {block: [] for block in blocks}
    for block in blocks:
        for following in block.next:
            before[following].append(block)
    loops: dict[Block, set[Block]] = {}
    for latch, head in _back_edges(blocks[0]):
        body, waiting = loops.setdefault(head, {head}), [latch]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting += before[block]
    for head, body in loops.items():
        if not body & (loops.keys() - {head}):
            yield [code for block in blocks if block in body for code in block.code]


def _back_edges(entry: Block) -> Iterator[tuple[Block, Block]]:
    """Edges to a block that is being visited, of a walk in depth."""
    path, done = [(entry, iter(entry.next))], set[Block]()
    on_path = {entry}
    while path:
        block, following = path[-1]
        after = next(following, None)
        if after is None:
            path.pop()
            on_path.discard(block)
            done.add(block)
        elif after in on_path:
            yield block, after
        elif after not in done:
            on_path.add(after)
            path.append((after, iter(after.next)))
