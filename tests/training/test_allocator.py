"""Memory of a training process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from vaegis.training.allocator import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed()
def churn():
    for _ in range(20):
        a = torch.ones(2_000_000)
        del a
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_blocks_are_kept_and_do_not_fault_again():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "leave")
    }
    # 8 MB a block are 1,953 pages of 4 kB, or 4 of 2 MB where the system gives large ones.
    assert faults["keep"] <= 40
    assert faults["leave"] >= faults["keep"]
