"""Starts a program that uses lmms-eval.

`python -P lmms_start.py lmms_eval …` is `python -m lmms_eval …`, and a path runs that file. Before that, PyYAML gets
its parser in C: lmms-eval reads more than a thousand task files at every start, and the parser in Python is several
times slower. It runs as a script, in the environment that evaluates, and therefore imports nothing of this package.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any


def command(python: str | None, program: str | Path, *arguments: str) -> list[str]:
    """Command line that starts a module or a file; python: of the environment that evaluates, None: this one."""
    # -P: this script's folder has modules whose names other packages use
    return [python or sys.executable, "-P", __file__, str(program), *arguments]


def use_c_parser() -> None:
    """Let `yaml.full_load` and `yaml.add_constructor`, which lmms-eval calls, use the parser in C, if there is one."""
    import yaml

    if not yaml.__with_libyaml__:
        return

    class Loader(yaml.CFullLoader):
        """Has the name of the file, as the parser in Python has: lmms-eval looks next to it for functions of a task."""

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.name = getattr(stream, "name", "<file>")

    yaml.FullLoader = yaml.loader.FullLoader = Loader


def main(program: str, *arguments: str) -> None:
    """Run the program with the arguments."""
    use_c_parser()
    sys.argv = [program, *arguments]
    if Path(program).is_file():
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path.insert(0, os.getcwd())  # as python -m does
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
