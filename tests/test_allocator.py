"""What a process frees, it has at once for the next allocation."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from promptax.core.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(100 * 2**20)
before = faults()
bytearray(100 * 2**20)
print(faults() - before)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_freed_memory_is_not_asked_for_again():
    assert page_faults("kept") < page_faults("as it is") / 10
