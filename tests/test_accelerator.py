"""The flags of XLA that the command line sets."""

import os
import subprocess
import sys

import pytest

from promptax.core import accelerator

FLAG = "--xla_gpu_enable_triton_gemm=false"
OTHER = "--xla_gpu_dot_merger_threshold_mb=0"


@pytest.mark.parametrize(
    ("plugin", "given", "wanted"),
    [
        (True, None, f"{FLAG} {OTHER}"),
        (True, "--xla_dump_to=/x", f"--xla_dump_to=/x {FLAG} {OTHER}"),
        (True, f"{OTHER[:-1]}32", f"{OTHER[:-1]}32 {FLAG}"),
        (False, None, None),
        (False, "--xla_dump_to=/x", "--xla_dump_to=/x"),
    ],
)
def test_flags_are_added_where_there_is_a_plugin_and_the_user_has_set_none(
    monkeypatch, plugin, given, wanted
):
    monkeypatch.setattr(accelerator, "find_spec", lambda name: plugin or None)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    accelerator.tune_xla()
    assert os.environ.get("XLA_FLAGS") == wanted
    accelerator.tune_xla()
    assert os.environ.get("XLA_FLAGS") == wanted


def test_xla_knows_the_flags_and_a_cpu_computes_with_them():
    """XLA ends a process that is given a flag that it does not know."""
    program = "import jax; print(jax.numpy.ones(2).sum())"
    flags = " ".join(f"--{name}={value}" for name, value in accelerator.GPU_FLAGS.items())
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2.0"


def test_the_command_line_sets_them_before_jax_starts():
    """Importing a command must not start JAX, which reads the flags once."""
    program = (
        "import promptax.cli.train, promptax.cli.evaluate; from jax._src import xla_bridge; "
        "print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
