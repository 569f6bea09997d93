"""Run the pure modules' own tests and fail unless they take every branch."""

import subprocess
import sys

from layers import PURE, ROOT


def main() -> int:
    tests = [f"tests/{name.rpartition('/')[0]}/test_{name.rpartition('/')[2]}" for name in PURE]
    present = [test for test in tests if (ROOT / test).is_file()]
    run = [sys.executable, "-m", "coverage", "run", "--branch", f"--include={','.join(PURE)}", "-m", "pytest", "-q"]
    tested = subprocess.run([*run, *present], cwd=ROOT, check=False).returncode
    report = [sys.executable, "-m", "coverage", "report", "--show-missing", "--fail-under=100"]
    return tested or subprocess.run(report, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
