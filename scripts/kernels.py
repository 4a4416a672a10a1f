"""The kernels of a compiled training step on a GPU, and the memory that they read and write.

Compiles with JAX's plugin for NVIDIA GPUs, but for a GPU that this machine need not have. What a
kernel takes as operands counts as read and what it gives as written, in units of 10^9 bytes.

    python scripts/kernels.py --method l2p dualprompt --card h200
    python scripts/kernels.py --no-apart --xla xla_gpu_dot_merger_threshold_mb 64 --top 20
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import tyro
from cards import CARDS, GIGA, mesh_of
from memory import CardName, compile_step, empty_stream
from timing import Dtype, Method, Work

SIZES = {"pred": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
"""Bytes of a number. Other types are rare and small, or the workspaces of matrix products (s8)."""
NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_NAME = re.compile(r"%([\w.-]+)")


@dataclass(frozen=True)
class Kernels:
    """Print a table for each method."""

    method: tuple[Method, ...] = ("l2p",)
    """Which steps."""
    card: CardName = "h200"
    """The GPU to compile for."""
    vit: str = "vit-b/16"
    """Shape of the ViT."""
    batch_size: int = 128
    """Images of a step."""
    dtype: Dtype = "bfloat16"
    """What the ViT computes in."""
    apart: bool = True
    """Store frozen blocks apart rather than in stacks."""
    top: int = 0
    """List so many groups of equal kernels, those with the most traffic first."""
    xla: Mapping[str, str] = field(default_factory=dict)
    """Options of XLA besides those that promptax sets."""

    def tables(self) -> None:
        """Compile, count and print."""
        card = CARDS[self.card]
        mesh = mesh_of(card)
        stream = empty_stream()
        for method in self.method:
            work = Work(
                method=method,
                vit=self.vit,
                batch_size=self.batch_size,
                dtype=self.dtype,
                apart=self.apart,
                augment=True,
            )
            create = lambda work=work: work.trainer(stream=stream, mesh=mesh)
            program = compile_step(create, stream, card, **self.xla).as_text()
            kernels = list(kernels_of(program or ""))
            print(f"\n{method} on {self.vit}, {self.batch_size} images, {card.name}\n")
            print("\n".join(table(kernels)))
            print("\n".join(largest(kernels, self.top)))


@dataclass(frozen=True)
class Kernel:
    """One kernel of a program."""

    name: str
    kind: str
    result: str
    """The shapes that it gives."""
    read: int
    """Bytes of its operands."""
    written: int
    """Bytes of its results."""


def kernels_of(program: str) -> Iterator[Kernel]:
    """The kernels of a program's entry, in their order.

    Args:
        program: as XLA prints it when it has compiled it.
    """
    head, entry = program.split("\nENTRY ", 1)
    bodies = dict(re.findall(r"^%([\w.-]+) .*?\{\n(.*?)^\}", head, re.MULTILINE | re.DOTALL))
    shapes = {}
    for line in entry.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, result, operation, rest = match.groups()
        shapes[name] = result
        if operation in NO_KERNEL:
            continue
        operands = set(_NAME.findall(rest.split("), ", 1)[0]))
        called = re.search(r"calls=%([\w.-]+)", rest)
        body = bodies.get(called.group(1), "") if called else ""
        yield Kernel(
            name=re.sub(r"[\d.]+$", "", name),
            kind=_kind(operation, rest + body),
            result=result,
            read=sum(_bytes(shapes.get(operand, "")) for operand in operands),
            written=_bytes(result),
        )


def _kind(operation: str, text: str) -> str:
    if "__cublas" in text or "__triton_gemm" in text:
        return "matrix product"
    if "__cudnn$fmha" in text:
        return "attention"
    return "copy" if operation == "copy" else "other"


def _bytes(shapes: str) -> int:
    total = 0
    for kind, sides in _SHAPE.findall(shapes):
        count = 1
        for side in sides.split(",") if sides else []:
            count *= int(side)
        total += count * SIZES.get(kind, 0)
    return total


def table(kernels: list[Kernel]) -> Iterator[str]:
    """Lines of a table by kind."""
    kinds: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        kinds[kernel.kind].append(kernel)
    yield "| kind | kernels | read (GB) | written (GB) |"
    yield "|---|---|---|---|"
    for kind, members in [*sorted(kinds.items()), ("all", kernels)]:
        read = sum(kernel.read for kernel in members) / GIGA
        written = sum(kernel.written for kernel in members) / GIGA
        yield f"| {kind} | {len(members)} | {read:.2f} | {written:.2f} |"


def largest(kernels: list[Kernel], top: int) -> Iterator[str]:
    """Lines with groups of equal kernels, those with the most traffic first."""
    groups: dict[Kernel, int] = defaultdict(int)
    for kernel in kernels:
        groups[kernel] += 1
    moved = lambda item: item[1] * (item[0].read + item[0].written)
    for kernel, count in sorted(groups.items(), key=moved, reverse=True)[:top]:
        total = moved((kernel, count)) / GIGA
        yield f"{total:6.2f} GB  {count:3} x {kernel.kind}  {kernel.name}  {kernel.result}"


if __name__ == "__main__":
    tyro.cli(Kernels).tables()
