"""Scores from the results that lmms-eval writes."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from coincide.base.errors import UserError

FAILED = "failed"  # key of a results.json whose tasks could not be evaluated


class EvaluationError(UserError):
    """lmms-eval failed, or its results lack a score."""


def read_scores(path: Path | str) -> list[dict[str, Any]]:
    """Scores in a results.json of lmms-eval.

    The score of a task is its first metric, in the order of the task file.

    Returns:
        one dict per task: task, metric, score (float, as lmms-eval reports it), higher_is_better.

    Raises:
        EvaluationError: a task has no score.
    """
    report = json.loads(Path(path).read_text())
    rows = []
    for task, values in report["results"].items():
        if report.get("group_subtasks", {}).get(task):
            continue  # the row of a group; its tasks have rows of their own
        first_metric = report["configs"][task]["metric_list"][0]
        name = first_metric["metric"]
        # Keys are "metric,filter"; the standard error has another name, and may be the string "N/A".
        score = next((v for k, v in values.items() if k.split(",")[0] == name and isinstance(v, int | float)), None)
        if score is None:
            raise EvaluationError(f"{path}: no {name} for task {task}")
        rows.append(
            {
                "task": task,
                "metric": name,
                "score": float(score),
                "higher_is_better": bool(first_metric.get("higher_is_better", True)),
            }
        )
    return rows


def read_answers(path: Path | str) -> pd.DataFrame:
    """The score of every answer of an evaluation.

    Args:
        path: a results.json of `coincide.evaluation.evaluate.evaluate`, next to the answers.

    Returns:
        table of task, question (its number within the task) and score, by the metric of `read_scores`.

    Raises:
        EvaluationError: a task has no score, or an answer has none.
    """
    tables = []
    for row in read_scores(path):
        file = Path(path).parent / "samples" / f"{row['task']}.jsonl"
        answers = [json.loads(line) for line in file.read_text().splitlines()]
        try:
            scores = [(answer["doc_id"], float(answer[row["metric"]])) for answer in answers]
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{file}: an answer has no number as {row['metric']} ({error!r})") from None
        tables.append(pd.DataFrame(scores, columns=["question", "score"]).assign(task=row["task"]))
    return pd.concat(tables, ignore_index=True)[["task", "question", "score"]]


def read_failure(path: Path | str) -> dict[str, Any] | None:
    """Why tasks that may fail were not evaluated: dict of tasks, reason; None if they were.

    Args:
        path: a results.json of `coincide.evaluation.evaluate.evaluate`.
    """
    return json.loads(Path(path).read_text()).get(FAILED)
