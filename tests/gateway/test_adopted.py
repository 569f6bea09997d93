"""What dead processes left behind is reaped, and what one waits for oneself is left."""

import subprocess
import sys

PARENT = """
import ctypes, os, subprocess, sys
from trunkline.gateway.adopted import reap
reap({})
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: as good as the first process of a container
adopted = "import os; print(os.posix_spawnp('true', ['true'], {}), flush=True)"  # which it never waits for
first = subprocess.Popen([sys.executable, "-c", adopted], stdout=subprocess.PIPE)
left = int(first.stdout.read())
first.wait()
os.waitid(os.P_PID, left, os.WEXITED | os.WNOWAIT)
own = subprocess.Popen(["true"])
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
reap({own.pid})
assert own.wait() == 0
reap({})
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nobody is left")
"""


def test_others_are_reaped_and_its_own_are_left_to_who_waits_for_them() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60)
    assert done.stdout == "nobody is left\n", done.stderr
