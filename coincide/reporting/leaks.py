"""Tables and texts about evaluation leaks and near-duplicates."""

import base64
from typing import Any

import pandas as pd

from coincide.base.markdown import markdown_table
from coincide.evaluation.leaks import KINDS

SOURCES_SHOWN = 5
# what a line says about samples that were found, by the setting
ADVICE = {"report": "; set dataset.{} to drop to leave them out", "drop": "; they are dropped", "ignore": ""}


def leak_table(pairs: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """Counts per task.

    Args:
        pairs, tasks: tables of `coincide.evaluation.leaks.Leaks`.

    Returns:
        one row per task that could be read: task, documents, leaked_documents, samples, for each kind the number of
        samples, and the sources with the most of these samples as text. A sample may count for several kinds.
    """
    rows = []
    for task in tasks[~tasks["failed"]].itertuples():
        of_task = pairs[pairs["task"] == task.task]
        samples = of_task.drop_duplicates("sample_id")
        kinds = of_task.groupby("kind")["sample_id"].nunique().reindex(KINDS, fill_value=0)
        sources = ", ".join(f"{source} {n:,}" for source, n in _most_frequent(samples["source"]))
        counts = {"documents": task.documents, "leaked_documents": task.leaked_documents, "samples": len(samples)}
        rows.append({"task": task.task, **counts, **kinds.to_dict(), "sources": sources})
    columns = ["task", "documents", "leaked_documents", "samples", *KINDS, "sources"]
    return pd.DataFrame(rows, columns=columns)


def leak_sources(pairs: pd.DataFrame) -> pd.DataFrame:
    """Samples that leak, per task and source: one row per task and source, one column per kind."""
    table = pairs.pivot_table(index=["task", "source"], columns="kind", values="sample_id", aggfunc="nunique")
    return table.reindex(columns=list(KINDS)).fillna(0).astype(int).reset_index()


def duplicate_table(duplicates: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Counts per source.

    Args:
        duplicates: table of `coincide.dataset.duplicates.find_duplicates`.
        manifest: table of the samples that were compared, with column source.

    Returns:
        one row per source that has any, and the total: source, samples, copied_images (names of images that are a copy
        of another), samples_of_copies, repeated_samples.
    """
    by_source = duplicates.groupby("source")
    table = pd.DataFrame(
        {
            "samples": manifest["source"].value_counts(),
            "copied_images": by_source["image"].nunique(),
            "samples_of_copies": by_source["copy_of"].count(),
            "repeated_samples": by_source["repeats"].count(),
        }
    )
    table = table[table["copied_images"].notna()].fillna(0).astype(int).rename_axis("source").reset_index()
    total = {
        "source": "all",
        "samples": len(manifest),
        "copied_images": duplicates["image"].nunique(),
        "samples_of_copies": int(duplicates["copy_of"].count()),
        "repeated_samples": int(duplicates["repeats"].count()),
    }
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def leak_lines(pairs: pd.DataFrame, tasks: pd.DataFrame, mode: str = "ignore") -> list[str]:
    """What the text that ends a run says about leaks, one line each.

    Args:
        pairs, tasks: tables of `coincide.evaluation.leaks.Leaks`.
        mode: dataset.leaks.
    """
    lines = []
    if len(pairs):
        samples = pairs["sample_id"].nunique()
        tasks_of_samples = pairs.drop_duplicates(["task", "sample_id"])["task"]
        by_task = ", ".join(f"{task} {n:,}" for task, n in _most_frequent(tasks_of_samples))
        lines.append(
            f"Evaluation leaks: {samples:,} samples show images or ask questions of the evaluation "
            f"({by_task}){ADVICE[mode].format('leaks')}."
        )
    else:
        lines.append(f"Evaluation leaks: none in {int(tasks['documents'].sum()):,} documents.")
    lines += [f"Warning: {line}." for line in unread_tasks(tasks)]
    return lines


def unread_tasks(tasks: pd.DataFrame) -> list[str]:
    """What of the tasks could not be compared, one line per task."""
    return [
        f"the task {row.task} cannot be compared with the dataset: {row.problem}"
        if row.failed
        else f"the task {row.task} was compared in part: {row.problem}"
        for row in tasks[tasks["problem"] != ""].itertuples()
    ]


def duplicate_lines(duplicates: pd.DataFrame, mode: str) -> list[str]:
    """What the text that ends a run says about near-duplicates, one line.

    Args:
        duplicates: table of `coincide.dataset.duplicates.find_duplicates`.
        mode: dataset.near_duplicates.
    """
    repeated = int(duplicates["repeats"].count())
    advice = ADVICE[mode].format("near_duplicates") if repeated else ""
    return [
        f"Near-duplicates: {duplicates['image'].nunique():,} images are copies of others, {repeated:,} samples repeat "
        f"another{advice}."
    ]


def leaks_text(pairs: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """The leaks as Markdown: counts per task, and per task and source.

    Args:
        pairs, tasks: tables of `coincide.evaluation.leaks.Leaks`.
    """
    lines = ["# Evaluation leaks", "", *leak_lines(pairs, tasks), "", markdown_table(leak_table(pairs, tasks))]
    if len(pairs):
        lines += ["", "Samples by task and source:", "", markdown_table(leak_sources(pairs))]
    return "\n".join(lines) + "\n"


def report_section(
    *,
    pairs: pd.DataFrame | None,
    tasks: pd.DataFrame | None,
    examples: pd.DataFrame | None,
    duplicates: pd.DataFrame | None,
    manifest: pd.DataFrame,
    leaks_mode: str,
    duplicates_mode: str,
) -> dict[str, Any]:
    """Values of the template leaks.html.

    Args:
        pairs, tasks, examples: tables of `coincide.evaluation.leaks.Leaks`; None if leaks are ignored.
        duplicates: table of `coincide.dataset.duplicates.find_duplicates`; None if duplicates are ignored.
        manifest: table of the samples that were compared.
        leaks_mode, duplicates_mode: dataset.leaks, dataset.near_duplicates.

    Returns:
        dict of leaks and duplicates, each None or a dict of lines, columns and data; leaks has examples as well.
    """
    section: dict[str, Any] = {"leaks": None, "duplicates": None}
    if pairs is not None and tasks is not None and examples is not None:
        section["leaks"] = {
            "lines": leak_lines(pairs, tasks, leaks_mode),
            **leak_table(pairs, tasks).to_dict("split"),
            "examples": [_example(row) for row in examples.itertuples()],
        }
    if duplicates is not None:
        lines = duplicate_lines(duplicates, duplicates_mode)
        section["duplicates"] = {"lines": lines, **duplicate_table(duplicates, manifest).to_dict("split")}
    return section


def _most_frequent(values):
    return list(values.value_counts().head(SOURCES_SHOWN).items())


def _example(row):
    distance = "" if pd.isna(row.distance) else f", {row.distance} bits apart"
    return {
        "title": f"{row.task}, document {row.document}: {row.kind}{distance}{', mirrored' if row.mirrored else ''}",
        "sample_id": row.sample_id,
        "question": row.question,
        "sample_question": row.sample_question,
        "task_image": _data_url(row.task_image),
        "sample_image": _data_url(row.sample_image),
    }


def _data_url(content):
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if isinstance(content, bytes) else None
