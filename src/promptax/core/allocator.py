"""The C library's treatment of memory that a step has used and freed."""

import ctypes
import platform

# The numbers of two options of `mallopt` in glibc's `malloc.h`.
_M_TRIM_THRESHOLD = -1  # free bytes at the end of the heap above which it shrinks
_M_MMAP_MAX = -4  # how many large blocks may be mapped on their own, and unmapped when freed
_NEVER = 2**31 - 1  # the largest value that `mallopt` takes


def keep_freed_memory() -> None:
    """Let a process on Linux keep what it frees for its next allocation.

    A step on a CPU allocates its temporary memory anew. By default, large blocks go back to the
    system each time, which must clear them again page by page: a fifth of a step of a small ViT.
    Call it from programs only (the command line, the scripts): a library should not decide this for
    the program that imports it.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
