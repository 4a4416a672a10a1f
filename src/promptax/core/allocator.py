"""What the C library does with memory that a step has used."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of these options in glibc's `malloc.h`."""


def keep_freed_memory() -> None:
    """Let a process on Linux keep what it frees for its next allocation.

    A step on a CPU allocates its temporary memory anew. By default, large blocks go back to the
    system each time, which must clear them again page by page: a fifth of a step of a small ViT.
    For a process of its own only (the command line, the scripts): a library does not decide this
    for the program that it is part of.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        options = ctypes.CDLL(None).mallopt
        options(_MMAP_MAX, 0)
        options(_TRIM_THRESHOLD, 2**31 - 1)
