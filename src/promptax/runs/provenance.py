"""Where a result comes from: the program that computed it, and the machine that it ran on."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from promptax.core.distributed import to_host

PACKAGE = Path(__file__).parent
LIBRARIES = ("promptax", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "numpy")
"""Whose versions a result holds."""


def versions() -> dict[str, str]:
    """Of the libraries that decide on numbers."""
    return {name: version(name) for name in LIBRARIES}


@cache
def source() -> dict[str, Any]:
    """The version of the package, a digest of its Python files, and, where it runs from a
    checkout, the commit and whether files of the package have changed since (`dirty`)."""
    files = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        files.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return {"version": version("promptax"), "sha256": files.hexdigest(), **_checkout()}


def describe_source(source: dict[str, Any]) -> str:
    """As a line of text shows it."""
    commit = source.get("commit")
    changed = ", changed since" if source.get("dirty") else ""
    where = f"commit {commit[:10]}{changed}, " if commit else ""
    return f"{source.get('version')} ({where}files {str(source.get('sha256'))[:8]})"


def machine() -> dict[str, Any]:
    """What the bits of a computation can depend on, beside versions."""
    devices = jax.devices()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "backend": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def digest(tree: PyTree) -> str:
    """Of the shapes, types and bits of a tree's arrays, whatever its fields are called."""
    bits = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        array = to_host(leaf)
        bits.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return bits.hexdigest()


def _checkout() -> dict[str, Any]:
    # A virtual environment can lie in a checkout of something else, which does not track us.
    if _git("ls-files", "--error-unmatch", "provenance.py") is None:
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "HEAD"), "dirty": _git("status", "--porcelain", ".") != ""}


def _git(*words: str) -> str | None:
    """What git says of the package's folder; None where it says nothing, or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
