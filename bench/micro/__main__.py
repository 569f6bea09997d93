"""What the parts on the hot path cost by themselves: operations each second, and what each allocates.

Run: `python -m bench.micro [--seconds S] [--no-servers] [--output FOLDER]`, for the codec, the demultiplexer, the
pool's policy, the framing and the directories; the last ones start servers of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.processes import ROOT
from bench.results import LOCAL, Row, write_result
from bench.tables import print_rows


def main() -> int:
    """Run pytest-benchmark over this folder; print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each operation, at most")
    parser.add_argument("--no-servers", action="store_true", help="without the directories")
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "micro.json"
        command = [sys.executable, "-m", "pytest", "bench/micro", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
        command += [f"--benchmark-json={file}", f"--benchmark-max-time={given.seconds:g}", "--benchmark-quiet"]
        command += ["--deselect", "bench/micro/test_directory.py"] if given.no_servers else []
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            return status
        rows = [row(one) for one in json.loads(file.read_text())["benchmarks"]]
    columns = {name: name.replace("_", " ") for name in rows[0] if name != "rounds"}
    print_rows("parts of the hot path", rows, columns)
    command_line = f"python -m bench.micro --seconds {given.seconds:g}"
    write_result(given.output, "micro", "parts of the hot path by themselves", command_line, rows)
    return 0


def row(one: dict[str, Any]) -> Row:
    """The figures of one operation. A round of the demultiplexer holds many."""
    each = one["extra_info"].get("operations", 1)
    statistics = one["stats"]
    file = Path(one["fullname"].partition("::")[0]).stem
    name, _, parameters = one["name"].rstrip("]").partition("[")
    about = [name.replace("_", " "), *filter(None, parameters.split("-"))]
    words = [word.removeprefix("test ").removeprefix("test_") for word in (file, ", ".join(about))]
    return {
        "variant": ": ".join(words),
        "operations_per_second": round(each / statistics["median"]),
        "us": round(statistics["median"] / each * 1e6, 3),
        "peak_bytes": one["extra_info"].get("peak_bytes"),
        "blocks": one["extra_info"].get("blocks"),
        "rounds": {"us": [round(statistics[of] / each * 1e6, 3) for of in ("q1", "median", "q3")]},
    }


if __name__ == "__main__":
    sys.exit(main())
