"""Repeating the check before the first job, when what it depends on has changed since.

The rule `preflight` makes the first check. Later ones cannot be jobs: while a job on which others depend has to run,
Snakemake (9.27) does not look at what else has changed for those, and an ancient input alone starts none of them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coincide.base.errors import UserError
from coincide.base.sections import Config
from coincide.dataset.formats import expand_annotations
from coincide.workflow.stages import preflight_settings


class RecheckError(UserError):
    """A run that cannot work any more; the message has every problem, with its fix."""


def is_stale(config: Config, report: str | Path) -> bool:
    """Whether the settings or the dataset have changed since a check.

    Args:
        config: Config of the run.
        report: preflight.json of the run.
    """
    report = Path(report)
    recorded = json.loads(report.read_text()).get("settings")
    if recorded != json.loads(json.dumps(preflight_settings(config))):
        return True
    checked = report.stat().st_mtime
    return any(os.stat(path).st_mtime > checked for path in expand_annotations(config.dataset.annotations))


def repeat_checks(
    reports: Iterable[str | Path],
    configs: Mapping[str, Config],
    *,
    local: bool,
    overrides: Mapping[str, Mapping[str, Any]],
) -> None:
    """Repeat the checks that are not current, before any job starts.

    Args:
        reports: results/<run>/preflight.json files that exist.
        configs: run -> its Config.
        local: whether jobs run on this machine.
        overrides: resources that the profile sets, by rule.

    Raises:
        RecheckError: a run has problems.
    """
    for report in sorted(map(Path, reports)):
        config = configs[report.parent.name]
        if not is_stale(config, report):
            continue
        print(f"{report.parent}: checking models, samples, tasks and resources again", file=sys.stderr)
        arguments = {
            "config": config.model_dump(),
            "report": str(report),
            "local": local,
            "overrides": overrides,
        }
        command = [sys.executable, "-m", "coincide.workflow.preflight"]
        done = subprocess.run(command, input=json.dumps(arguments), text=True, capture_output=True, check=False)
        if done.returncode:
            raise RecheckError(f"{report.parent}: {done.stderr.strip()}")
