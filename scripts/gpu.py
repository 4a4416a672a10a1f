"""Everything that is to be known of one GPU, for `scripts/benchmark.py gpu`.

Each section runs in a process of its own with a time limit, so that a section that fails, hangs or
fills the memory costs only itself. Every figure is written as soon as it is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptax.core.accelerator import tune_xla

VIT = os.environ.get("PROMPTAX_GPU_VIT", "vit-b/16")
BATCH = int(os.environ.get("PROMPTAX_GPU_BATCH", "128"))
"""Of most measurements. The environment is there for a trial on a small machine."""
STEPS = 20
"""Steps of one measurement."""
TURNS = 5
"""Measurements; the median counts."""
COMPILERS = max(1, min(2, (os.cpu_count() or 1) // 2))
"""Programs compiled at the same time."""
GRACE = 2
"""Seconds that a section may take longer than it was told."""
Row = dict[str, Any]


@dataclass
class Record:
    """Where a section writes its rows, and until when it may go on."""

    path: Path
    ends: float
    """By `time.monotonic`."""
    section: str

    def add(self, name: str, **figures: Any) -> None:
        """Write a row at once."""
        row = {"section": self.section, "name": name, **figures}
        with self.path.open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")
        shown = {key: value for key, value in figures.items() if key not in HIDDEN}
        text = "  ".join(f"{key}={_short(value)}" for key, value in shown.items())
        print(f"[{self.left:4.0f} s left] {self.section}: {name}  {text}", flush=True)

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self.ends - time.monotonic()

    @contextlib.contextmanager
    def item(self, name: str) -> Iterator[None]:
        """Record what goes wrong in the body, and go on."""
        try:
            yield
        except Exception as error:  # a benchmark goes on, whatever a library raises
            self.add(name, error=f"{type(error).__name__}: {error}"[:600])

    def need(self, seconds: float) -> None:
        """Raise `OutOfTime`, which `item` records, if less time is left."""
        if self.left < seconds:
            raise OutOfTime(f"only {self.left:.0f} s were left")


class OutOfTime(Exception):
    """An item was left out."""


HIDDEN = ("kernels",)
"""Figures that are written, but not printed."""


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value}"


def _work(**options: Any):
    from timing import Work

    return Work(**{"vit": VIT, "batch_size": BATCH, "dtype": "bfloat16", "cast": True, **options})


def _seconds(start: Callable[[], Any], steps: int = STEPS, turns: int = TURNS) -> list[float]:
    """Seconds of a step, of each measurement."""
    from timing import in_turns, repeated

    (times,) = in_turns([repeated(start, steps)], turns)
    return [each / steps for each in times]


def _rates(work: Any, seconds: list[float], flops: float, peak: float) -> Row:
    from timing import speed

    figures = speed(work, statistics.median(seconds), flops, peak)
    return {**figures, "milliseconds": 1e3 * figures["seconds"], "fastest": 1e3 * min(seconds)}


def _machine(record: Record) -> float:
    """Versions, and the rates that everything else is compared with."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    from timing import timed

    gpu = jax.default_backend() == "gpu"
    side = 8192 if gpu else 512
    random = jr.normal(jr.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    steps = 20
    chain = lambda: jax.block_until_ready([product(random) for _ in range(steps)])
    chain()
    peak = 2 * side**3 * steps / min(timed(chain) for _ in range(5))
    copied = jnp.zeros(2**30 if gpu else 2**20, jnp.bfloat16)
    copy = jax.jit(lambda a: a + 1)
    copy_all = lambda: jax.block_until_ready([copy(copied) for _ in range(8)])
    copy_all()
    moved = 8 * 2 * copied.nbytes / min(timed(copy_all) for _ in range(5))
    device = jax.devices()[0]
    record.add(
        "machine",
        device=device.device_kind,
        jax=jax.__version__,
        platform=device.client.platform_version.replace("\n", " "),
        memory_limit=(device.memory_stats() or {}).get("bytes_limit"),
        matmul_peak=peak,
        copy_bytes_per_second=moved,
        flags=os.environ.get("XLA_FLAGS", ""),
    )
    return peak


def check(record: Record) -> None:
    """What runs on the GPU agrees with plain attention in float32."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from promptax import nn

    config = nn.ViTConfig(patch=16, dim=256, depth=3, heads=4, mlp=1024, image=224)
    draw = lambda *shape, seed=0: jr.normal(jr.key(seed), shape)
    prompts = {
        "none": {},
        "inserts": {"inserts": {0: draw(4, 40, 256), 2: draw(4, 3, 256)}, "read": 40},
        "prefixes": {"prefixes": {0: draw(4, 2, 5, 4, 64), 1: draw(4, 1, 20, 4, 64)}, "read": 1},
    }
    images = jr.uniform(jr.key(1), (4, 224, 224, 3))
    weight = draw(256, seed=2)

    def outcome(execution: nn.Execution, dtype: Any, given: Mapping[str, Any]):
        vit = nn.ViT(config, key=jr.key(0), dtype=dtype, execution=execution)
        arrays, fixed = eqx.partition(given, eqx.is_array)

        @eqx.filter_jit
        def run(vit, arrays):
            def loss(both):
                vit, arrays = both
                x = vit.encode(vit.tokens(vit.patches(images)), **eqx.combine(arrays, fixed))
                return (x.astype(jnp.float32) @ weight).mean(), x.astype(jnp.float32)

            return eqx.filter_grad(loss, has_aux=True)((vit, arrays))

        with jax.default_matmul_precision("highest"):
            return run(vit, arrays)

    plain = nn.Execution("plain", "scan", "projections", "saved")
    for name, given in prompts.items():
        with record.item(f"check {name}"):
            record.need(10)
            wanted = outcome(plain, "float32", given)
            for what, execution in {"auto": nn.Execution(), "plain": plain}.items():
                ours = outcome(execution, "bfloat16", given)
                pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True)
                errors = [
                    float(jnp.linalg.norm((a - b).ravel()) / (jnp.linalg.norm(b.ravel()) + 1e-30))
                    for a, b in pairs
                ]
                record.add(
                    f"check {name}, {what} in bfloat16 against plain in float32",
                    feature_error=errors[-1],
                    largest_gradient_error=max(errors[:-1]),
                    median_gradient_error=statistics.median(errors[:-1]),
                )


def lengths(record: Record) -> None:
    """Attention by itself, forwards and backwards, at several lengths."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    heads, width = 12, 64
    cases = {
        "197, no padding": (197, 197, None),
        "200, 197 count": (200, 200, 197),
        "200, no mask": (200, 200, None),
        "208, 202 count": (200, 208, 202),
        "237, no padding": (237, 237, None),
        "237, 237 count": (237, 237, 237),
        "238, 237 count": (238, 238, 237),
        "240, 237 count": (240, 240, 237),
        "240, no mask": (240, 240, None),
        "256, 237 count": (256, 256, 237),
        "256, no mask": (256, 256, None),
    }

    def loss(query, key, value, counted):
        numbers = None if counted is None else jnp.full(len(query), counted, jnp.int32)
        mixed = jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=numbers, implementation="cudnn"
        )
        return (mixed * query).astype(jnp.float32).sum()

    for name, (queries, keys, counted) in cases.items():
        with record.item(f"attention {name}"):
            record.need(6)
            query = jr.normal(jr.key(0), (BATCH, queries, heads, width), jnp.bfloat16)
            key = jr.normal(jr.key(1), (BATCH, keys, heads, width), jnp.bfloat16)
            run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
            forward = jax.jit(loss, static_argnums=3)
            both = _seconds(lambda: run(query, key, key, counted), 20, 3)  # noqa: B023
            one = _seconds(lambda: forward(query, key, key, counted), 20, 3)  # noqa: B023
            record.add(
                f"attention {name}",
                milliseconds=1e3 * statistics.median(both),
                forward_milliseconds=1e3 * statistics.median(one),
            )


Program = tuple[Any, Mapping[str, Any] | None]
"""What is computed, and XLA's options for it."""
VARIANTS: Mapping[str, tuple[Row, Mapping[str, Any] | None]] = {
    "Triton products": ({}, {"xla_gpu_enable_triton_gemm": True}),
    "weights cast in each step": ({"cast": False}, None),
    "norm and GELU saved": ({"elementwise": "saved"}, None),
    "as before": (
        {"attention": "plain", "blocks": "scan", "remat": "projections", "elementwise": "saved"}
        | {"cast": False, "apart": False},
        {"xla_gpu_enable_triton_gemm": True, "xla_gpu_dot_merger_threshold_mb": 64},
    ),
    "products merged": ({}, {"xla_gpu_dot_merger_threshold_mb": 64}),
    "blocks in stacks": ({"apart": False}, None),
    "remat projections": ({"remat": "projections"}, None),
    "scanned, remat projections": ({"blocks": "scan", "remat": "projections"}, None),
    "plain attention": ({"attention": "plain"}, None),
    "cuDNN LayerNorm": ({"elementwise": "saved"}, {"xla_gpu_enable_cudnn_layer_norm": True}),
    "cuBLASLt on": ({}, {"xla_gpu_enable_cublaslt": True}),
    "cuBLASLt off": ({}, {"xla_gpu_enable_cublaslt": False}),
    "no CUDA graphs": ({}, {"xla_gpu_enable_command_buffer": ""}),
    "remat all": ({"remat": "all"}, None),
    "batch 256": ({"batch_size": 256}, None),
    "cached queries": ({"cached": True}, None),
    "images augmented in the step": ({"augment": True}, None),
    "float32": ({"dtype": "float32"}, None),
}
"""Changes of the step of L2P, the most telling first."""


def steps(record: Record) -> None:
    """Training steps and evaluations as they are chosen for the device, and where time goes."""
    from timing import evaluation_flops, step_flops

    peak = _machine(record)
    methods = ("l2p", "dualprompt", "finetune")
    programs: dict[str, Program] = {name: (_work(method=name), None) for name in methods}
    evaluations: dict[str, Program] = {name: programs[name] for name in methods[:2]}
    with ThreadPoolExecutor(COMPILERS) as pool:
        ready = _compiled(record, pool, programs)
        ready_evaluations = _compiled(record, pool, evaluations, evaluate=True)
        for name, (start, facts) in ready.items():
            with record.item(name):
                record.need(3)
                _time(record, name, programs[name][0], start, facts, step_flops, peak)
        for name, (start, facts) in ready_evaluations.items():
            with record.item(f"evaluate {name}"):
                record.need(3)
                work = evaluations[name][0]
                _time(record, f"evaluate {name}", work, start, facts, evaluation_flops, peak)
        for name in ("l2p", "dualprompt"):
            if name in ready:
                profile(record, name, ready[name][0])
        check(record)
        _leave(record, pool)


def variants(record: Record) -> None:
    """Training steps of L2P with one choice changed."""
    from timing import step_flops

    peak = _machine(record)
    programs: dict[str, Program] = {"l2p": (_work(), None)}
    programs |= {f"l2p, {name}": (_work(**w), options) for name, (w, options) in VARIANTS.items()}
    with ThreadPoolExecutor(COMPILERS) as pool:
        # Compiling tries kernels out on the GPU, so that nothing is timed before all is compiled.
        ready = _compiled(record, pool, programs, leave=20)
        for name, (start, facts) in ready.items():
            with record.item(name):
                record.need(2)
                _time(record, name, programs[name][0], start, facts, step_flops, peak)
        _leave(record, pool)


def _compiled(
    record: Record,
    pool: ThreadPoolExecutor,
    programs: Mapping[str, Program],
    *,
    evaluate: bool = False,
    leave: float = 10,
) -> dict[str, tuple[Callable[[], Any], Row]]:
    """Compile programs at the same time; those that are not ready `leave` seconds before the end
    of the section are given up."""
    from timing import compiled_evaluation, compiled_step

    compile_one = compiled_evaluation if evaluate else compiled_step
    jobs = {name: pool.submit(compile_one, *each) for name, each in programs.items()}
    ready = {}
    for name, job in jobs.items():
        with record.item(f"compile {name}"):
            ready[name] = job.result(timeout=max(0.1, record.left - leave))
    return ready


def _time(
    record: Record,
    name: str,
    work: Any,
    start: Callable[[], Any],
    facts: Row,
    flops: Callable[[Any], float],
    peak: float,
) -> None:
    kept = ("compile_seconds", "argument_bytes", "temporary_bytes")
    known = {key: facts[key] for key in kept if key in facts}
    record.add(name, **_rates(work, _seconds(start), flops(work), peak), **known)


def _leave(record: Record, pool: ThreadPoolExecutor) -> None:
    """End the process, even while a thread still compiles, which nothing can interrupt."""
    pool.shutdown(wait=False, cancel_futures=True)
    sys.stdout.flush()
    os._exit(0)


def profile(record: Record, name: str, start: Callable[[], Any], count: int = 5) -> None:
    """Where the time of a step goes, by kernel."""
    from timing import repeated
    from traces import busy_nanoseconds, idle_share, traced

    with record.item(f"profile {name}"):
        repeated(start, 3)()
        kernels = traced(repeated(start, count))
        if not kernels:
            raise RuntimeError("the profile has no stream of a GPU")
        totals: dict[str, list[float]] = {}
        for kernel in kernels:
            totals.setdefault(kernel.name, []).append(kernel.end - kernel.start)
        rows = [
            {"name": kernel[:160], "ms": sum(times) / count / 1e6, "calls": len(times) / count}
            for kernel, times in totals.items()
        ]
        rows.sort(key=lambda row: -row["ms"])
        record.add(
            f"profile {name}",
            busy_milliseconds=busy_nanoseconds(kernels) / count / 1e6,
            idle_share=idle_share(kernels),
            kernels=rows[:80],
        )


def against_torch(record: Record) -> None:
    """The same step and evaluation in PyTorch, in turns."""
    import numpy as np
    from timing import (
        compare,
        compiled_evaluation,
        compiled_step,
        evaluation_flops,
        in_turns,
        ratio,
        repeated,
        step_flops,
        torch_step,
    )

    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torch_step import TorchStep
    except ImportError as error:
        record.add("torch", error=f"not installed: {error}")
        return
    peak = _machine(record)

    def wait() -> None:
        torch.cuda.synchronize()

    def theirs_repeated(start: Callable[[], Any], count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                start()
            wait()

        return run

    def pair(name: str, work: Any, ours: Any, theirs: Any, flops: float, **facts: Any) -> None:
        runs = [repeated(ours, STEPS), theirs_repeated(theirs, STEPS)]
        times = in_turns(runs, TURNS)
        own, other = ([each / STEPS for each in side] for side in times)
        record.add(
            name,
            **_rates(work, own, flops, peak),
            torch_milliseconds=1e3 * statistics.median(other),
            torch_share_of_peak=flops * work.batch_size / statistics.median(other) / peak,
            times_as_fast_as_torch=ratio(times[1], times[0]),
            torch=torch.__version__,
            **facts,
        )

    def evaluate_pair(work: Any, mode: str) -> None:
        trainer, state = work.trainer()
        images = np.asarray(work.batch().image, np.float32) / 255
        step = TorchStep(work.method, work.config, work.dtype, mode, 0.0)
        theirs = step.evaluate(trainer.model(state), images)
        ours, _ = compiled_evaluation(work)
        pair(f"evaluate {work.method}, {mode}", work, ours, theirs, evaluation_flops(work))

    for mode in ("default", "max-autotune"):
        for method in ("l2p", "dualprompt"):
            work = _work(method=method)
            with record.item(f"{method}, {mode}"):
                record.need(30)
                began = time.monotonic()
                theirs = torch_step(work, mode)
                theirs()
                wait()
                compiling = time.monotonic() - began
                ours, _ = compiled_step(work)
                ours()  # as many steps as PyTorch has taken
                difference = compare(ours, theirs, steps=1)
                pair(
                    f"{method}, {mode}",
                    work,
                    ours,
                    theirs,
                    step_flops(work),
                    torch_compile_seconds=compiling,
                    loss_difference=difference,
                )
            if mode == "default":
                with record.item(f"evaluate {method}, {mode}"):
                    record.need(20)
                    evaluate_pair(work, mode)


def memory(record: Record) -> None:
    """Batch size and recomputation against memory and speed."""
    import jax
    from timing import step_flops

    peak = _machine(record)
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    works = [
        _work(vit=vit, batch_size=batch, remat=remat)
        for vit, batch in (
            ("vit-b/16", 128),
            ("vit-l/16", 128),
            ("vit-h/14", 64),
            ("vit-b/16", 512),
            ("vit-l/16", 256),
        )
        for remat in ("nothing", "projections", "all")
    ]
    programs: dict[str, Program] = {
        f"{work.vit}, batch {work.batch_size}, {work.remat}": (work, None) for work in works
    }
    with ThreadPoolExecutor(COMPILERS) as pool:
        ready = _compiled(record, pool, programs, leave=15)
        for name in list(ready):
            with record.item(name):
                record.need(2)
                start, facts = ready.pop(name)  # the arrays of a model are freed after its turn
                total = facts["argument_bytes"] + facts["temporary_bytes"]
                row = {"bytes": total, "bytes_limit": limit}
                if total < limit:
                    work = programs[name][0]
                    row |= _rates(work, _seconds(start, 5, 3), step_flops(work), peak)
                record.add(name, **row)
                del start
        _leave(record, pool)


def seeds(record: Record) -> None:
    """Several seeds of the small ViT, one after another and mapped."""
    from runs import measure_seeds
    from timing import Work

    for dtype in ("float32", "bfloat16"):
        for count in (8, 4):
            with record.item(f"{count} seeds, {dtype}"):
                record.need(10)
                work = Work(vit="glyph-vit", batch_size=32, dtype=dtype)
                record.add(f"{count} seeds, {dtype}", **measure_seeds(work, count, 5, "wall"))


def run(record: Record) -> None:
    """What the host needs for a step, and a whole run of Split CIFAR-100's size."""
    from host import Host
    from runs import Run

    for side in (32, 256):
        with record.item(f"host, images of {side} pixels"):
            record.need(10)
            record.add(f"host, images of {side} pixels", **Host(batch_size=BATCH).measure(side))
    work = _work(augment=True)
    whole = Run(work=work, tasks=10, classes=100, images=500, test=100, epochs=5)
    with record.item("run"):
        record.need(20)
        figures = whole.measure(on_task=lambda row: record.add("task of the run", **row))
        record.add("run", **figures)


SECTIONS: Mapping[str, tuple[Callable[[Record], None], float]] = {
    "steps": (steps, 85),
    "torch": (against_torch, 95),
    "variants": (variants, 55),
    "memory": (memory, 45),
    "lengths": (lengths, 20),
    "seeds": (seeds, 20),
    "run": (run, 110),
}
"""What is measured, the most important first, and the share of the time that each gets."""


@dataclass(frozen=True)
class Gpu:
    """Measure everything on one GPU, within a time limit."""

    out: Path = Path("build/gpu")
    """Folder for `gpu.json`, `gpu.md` and the log."""
    minutes: float = 6
    """Time for all sections together. One that fails or ends early leaves its time to the next."""
    sections: tuple[str, ...] = tuple(SECTIONS)
    """What to measure, the most important first."""

    def __call__(self) -> None:
        """Run the sections one after another, and write both tables after each."""
        for name in self.sections:
            if name not in SECTIONS:
                raise SystemExit(f"unknown section '{name}': choose from {', '.join(SECTIONS)}.")
        self.out.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        path = self.out / "gpu.jsonl"
        path.write_text("")
        shares = {name: SECTIONS[name][1] for name in self.sections}
        for number, name in enumerate(self.sections):
            left = 60 * self.minutes - (time.monotonic() - began) - 2
            rest = sum(shares[other] for other in self.sections[number:])
            seconds = left * shares[name] / rest
            outcome = self._run(name, seconds, path)
            if outcome is not None:
                with path.open("a") as file:
                    row = {"section": name, "name": "whole section", "error": outcome}
                    file.write(json.dumps(row) + "\n")
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            (self.out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
            (self.out / "gpu.md").write_text(markdown(rows))
        print((self.out / "gpu.md").read_text())

    def _run(self, name: str, seconds: float, path: Path) -> str | None:
        """One section in a process of its own; what went wrong, if anything did."""
        print(f"--- {name}: {seconds:.0f} s", flush=True)
        # Sections share what they compile, but a whole run is timed with its compilation.
        cache = "run" if name == "run" else "steps"
        folder = f"{tempfile.gettempdir()}/promptax-{os.getpid()}-{cache}"
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": folder}
        # PyTorch needs its share of the memory in the same process.
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.45" if name == "torch" else "0.9"
        command = [sys.executable, __file__, name, f"{seconds}", str(path)]
        try:
            done = subprocess.run(command, env=environment, timeout=seconds + GRACE, check=False)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        return None if done.returncode == 0 else f"ended with code {done.returncode}"


COLUMNS = {
    "milliseconds": "ms",
    "images_per_second": "images/s",
    "share_of_peak": "share of peak",
    "torch_milliseconds": "PyTorch ms",
    "times_as_fast_as_torch": "times as fast",
    "temporary_bytes": "temporary bytes",
    "bytes": "bytes",
}


def markdown(rows: Sequence[Row]) -> str:
    """One table of the figures that most rows have, and lists of the others."""
    lines = [
        "| section | what | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    others = []
    for row in rows:
        if COLUMNS.keys() & row.keys():
            cells = [_short(row[key]) if key in row else "" for key in COLUMNS]
            lines.append(f"| {row['section']} | {row['name']} | {' | '.join(cells)} |")
        rest = {
            key: value
            for key, value in row.items()
            if key not in {*COLUMNS, "section", "name", "kernels"}
        }
        if "error" in row or not COLUMNS.keys() & row.keys():
            facts = ", ".join(f"{key} {_short(value)}" for key, value in rest.items())
            others.append(f"- {row['section']}: {row['name']}: {facts}")
    kernels = [row["kernels"] for row in rows if "kernels" in row]
    for table in kernels:
        others += ["", "| kernel | ms a step | calls |", "|---|---|---|"]
        others += [f"| {k['name']} | {k['ms']:.3f} | {k['calls']:.0f} |" for k in table[:40]]
    return "\n".join([*lines, "", *others]) + "\n"


def main(name: str, seconds: str, path: str) -> None:
    """Run one section in this process."""
    record = Record(Path(path), time.monotonic() + float(seconds), name)
    tune_xla()
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    SECTIONS[name][0](record)


if __name__ == "__main__":
    main(*sys.argv[1:])
