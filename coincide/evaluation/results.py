"""Reading the results that lmms-eval writes."""

import json
from pathlib import Path

from coincide.base.errors import UserError


class EvaluationError(UserError):
    """lmms-eval failed, or its results lack what was asked."""


def read_scores(path):
    """Scores in an lmms-eval results.json.

    The score of a task is its first metric in the task file's own list, as lmms-eval reports it.

    Returns:
        list of dicts of task, metric, score, higher_is_better.

    Raises:
        EvaluationError: a task without a score.
    """
    report = json.loads(Path(path).read_text())
    rows = []
    for task, values in report["results"].items():
        if task in report.get("group_subtasks", {}) and report["group_subtasks"][task]:
            continue  # a group's own line
        metrics = report["configs"][task]["metric_list"]
        metric = metrics[0]["metric"]
        score = next((v for k, v in values.items() if k.split(",")[0] == metric and isinstance(v, int | float)), None)
        if score is None:
            raise EvaluationError(f"{path} has no {metric} of task {task}")
        rows.append(
            {
                "task": task,
                "metric": metric,
                "score": float(score),
                "higher_is_better": bool(metrics[0].get("higher_is_better", True)),
            }
        )
    return rows
