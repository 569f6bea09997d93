"""Large messages, one after the other, take their memory from the system once."""

import platform
import subprocess
import sys
from textwrap import dedent

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep what they like")

ROUNDS = 50


def pages_for_each_round(before: str) -> float:
    """Pages that the system gives a process for four answers of 1 MiB, which come in parts and are written anew."""
    program = dedent(f"""
        import resource
        from trunkline.gateway.heap import keep_what_large_messages_took

        def four_answers():
            answers = []
            for _ in range(4):
                text = b"".join([b"x" * 65536 for _ in range(16)])
                answers.append(text + b"y")

        def pages():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        {before}
        four_answers()
        start = pages()
        for _ in range({ROUNDS}):
            four_answers()
        print((pages() - start) / {ROUNDS})
    """)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return float(ended.stdout)


def test_what_large_messages_took_is_kept_for_the_next_ones() -> None:
    assert pages_for_each_round("keep_what_large_messages_took()") < 1
    assert pages_for_each_round("") > 256, "why this is done at all"
