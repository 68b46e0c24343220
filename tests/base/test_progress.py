"""What a terminal shows of work that ends early or fails."""

import os
import pty
import re
import subprocess
import sys
import termios

EARLY = """
import numpy as np
import coincide
x = np.repeat(np.eye(4, 8, dtype=np.float32), 5, axis=0)
coincide.spherical_kmeans(x, 4, iterations=50)
print("next", flush=True)
"""
FAILED = """
from coincide.base.progress import Progress
try:
    with Progress(4, "work") as progress:
        progress.update(1)
        raise ValueError
except ValueError:
    print("next", flush=True)
"""


def on_a_terminal(code):
    """Lines that a program leaves on a terminal: of each, what was written last over the earlier text."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=child, stdout=child, stderr=child)
    os.close(child)
    output = b""
    try:
        while block := os.read(parent, 4096):
            output += block
    except OSError:  # Linux reports the end of a terminal in this way
        pass
    os.close(parent)
    assert process.wait() == 0, output
    text = re.sub(r"\x1b\[\w+", "", output.decode())
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]


def test_a_bar_of_work_that_ends_early_is_complete_and_on_a_line_by_itself():
    lines = on_a_terminal(EARLY)
    (bar,) = [line for line in lines if "k-means" in line]
    assert "100%" in bar
    assert "next" in lines


def test_a_bar_of_work_that_fails_is_closed_but_not_complete():
    lines = on_a_terminal(FAILED)
    (bar,) = [line for line in lines if "work" in line]
    assert "25%" in bar
    assert "next" in lines
