"""The limit of threads, and that it costs no import of numba before it is used."""

import subprocess
import sys

CODE = """
import os, sys
import coincide.base.rows, coincide.base.activation_store
assert "numba" not in sys.modules
from coincide.base.threads import threads
os.environ["COINCIDE_THREADS"] = "1"
print(threads(), sys.modules["numba"].get_num_threads())
"""


def test_numba_is_imported_and_limited_on_first_use():
    output = subprocess.run([sys.executable, "-c", CODE], text=True, stdout=subprocess.PIPE, check=True).stdout
    assert output.split() == ["1", "1"]
