"""NVIDIA GPUs that this machine does not have: enough to compile for them.

XLA needs no GPU to compile for one, but JAX's plugin (`pip install 'promptax[cuda]'`), in a process
that has not started another backend. What is compiled for a card that is not there has not been
tuned on it, and cannot run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from promptax.core.accelerator import GPU_FLAGS
from promptax.core.sharding import AXES, AxisType
from promptax.nn.execution import Device

PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
GIGA = 10**9
SHARE = 0.75
"""The share of a GPU's memory that JAX takes when it starts."""


@dataclass(frozen=True)
class Card:
    """What XLA asks of a GPU."""

    name: str
    capability: str
    """CUDA's compute capability."""
    memory: int
    """Bytes."""
    bandwidth: int
    """Bytes a second."""
    cores: int
    """Streaming multiprocessors."""
    shared: int
    """Bytes of shared memory of a multiprocessor; a block may have all but 1 KiB."""
    cache: int
    """Bytes of the second-level cache."""
    clock: float
    """GHz."""

    @property
    def device(self) -> Device:
        """What promptax plans by."""
        return Device("gpu", float(self.capability), round(SHARE * self.memory))

    @property
    def description(self) -> str:
        """As text of XLA's `GpuTargetConfigProto`."""
        major, minor = self.capability.split(".")
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
                cuda_compute_capability {{ major: {major} minor: {minor} }}
                device_memory_size: {self.memory}
                memory_bandwidth: {self.bandwidth}
                core_count: {self.cores}
                clock_rate_ghz: {self.clock}
                l2_cache_size: {self.cache}
                shared_memory_per_core: {self.shared}
                shared_memory_per_block_optin: {self.shared - 1024}
                shared_memory_per_block: 49152
                threads_per_block_limit: 1024
                threads_per_core_limit: 2048
                threads_per_warp: 32
                fpus_per_core: {128 if int(major) >= 9 else 64}
                block_dim_limit_x: 2147483647
                block_dim_limit_y: 65535
                block_dim_limit_z: 65535
                registers_per_core_limit: 65536
                registers_per_block_limit: 65536
            }}"""


CARDS: Mapping[str, Card] = {
    "a100": Card("A100 80GB", "8.0", 85100068864, 2039 * GIGA, 108, 167936, 41943040, 1.41),
    "h100": Card("H100 80GB", "9.0", 84942979072, 3352 * GIGA, 132, 233472, 52428800, 1.98),
    "h200": Card("H200 141GB", "9.0", 151397597184, 4800 * GIGA, 132, 233472, 52428800, 1.98),
}
"""Figures from XLA's `xla/backends/gpu/target_config/specs` at 4336d12."""


def mesh_of(card: Card) -> Mesh:
    """A mesh of one such card, to compile for.

    Raises:
        SystemExit: JAX's plugin for NVIDIA GPUs is not installed.
    """
    # The plugin can also be loaded where there is no GPU, if JAX is not to start it.
    jax.config.update("jax_platforms", "cpu")
    _load_plugin()
    topology: Any = topologies.get_topology_desc(
        card.name, "cuda", target_config=card.description, topology="1x1x1"
    )
    grid = np.asarray(topology.devices).reshape(1, 1)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _load_plugin() -> None:
    for name in PLUGINS:
        try:
            import_module(name)
        except ModuleNotFoundError:
            continue
        return
    raise SystemExit("compiling for a GPU needs JAX's plugin: pip install 'promptax[cuda]'.")


def compile_for_gpu(traced: Any, **options: Any) -> jax.stages.Compiled:
    """Compile what was traced for the mesh of a card, with the flags that promptax sets.

    Args:
        traced: of `jax.jit(...).trace`.
        options: other options of XLA, by name.
    """
    flags = {name: _value(text) for name, text in GPU_FLAGS.items()} | options
    return traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=flags)


def _value(text: str) -> bool | int:
    return {"true": True, "false": False}[text] if text.isalpha() else int(text)
