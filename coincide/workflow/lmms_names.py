"""Names of lmms-eval: which tasks and models the installed version has.

`python lmms_names.py [include_path]` prints them as JSON. It runs as a script, in the environment that evaluates, and
therefore imports nothing of this package.
"""

import json
import sys
from importlib.metadata import version


def main(include_path: str | None = None) -> None:
    """Print version, tasks (with groups and tags) and models as JSON on the last line."""
    from lmms_eval.models import list_available_models
    from lmms_eval.tasks import TaskManager

    names = {
        "version": version("lmms-eval"),
        "tasks": sorted(TaskManager(include_path=include_path).all_tasks),
        "models": sorted(list_available_models(include_aliases=True)),
    }
    print(json.dumps(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
