"""What one should know before one trains on a coreset, each with the setting that changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from coincide.dataset.samples import Reason
from coincide.reporting.growth import RunGrowth, growth_warnings
from coincide.reporting.leaks import unread_tasks
from coincide.reporting.summary import UNDERREPRESENTED_BELOW, underrepresented_sources, unlearned_tasks

FEWEST_SEEDS = 3  # models below which there is no interval
REASON_FIXES = {
    Reason.DUPLICATE_ID: "dataset.duplicate_ids: digest keeps samples with the same id",
    Reason.TOO_LONG: "raise reference_model.max_tokens",
    Reason.MISSING_IMAGE: "check dataset.images",
    Reason.IMAGE_OUTSIDE_FOLDER: "set dataset.images to a folder that contains all images",
    Reason.NON_FINITE_ACTIVATION: "set reference_model.dtype to bfloat16 or float32",
}
SPREAD_FIX = "raise selection.temperature, set selection.budget: even, or read a larger reference_model.name"
SOURCE_FIX = f"set selection.constraints.at_least for them, {SPREAD_FIX}"
MANY_REPEATED = 0.01  # share of the samples above which near-duplicates are worth a warning


@dataclass(frozen=True)
class RunWarning:
    """A warning.

    Attributes:
        text: what is wrong, without a full stop.
        fix: the setting that changes it, or what to do.
    """

    text: str
    fix: str


def run_warnings(
    *,
    summary: pd.DataFrame,
    manifest: pd.DataFrame,
    rejected: pd.DataFrame,
    cluster_stats: pd.DataFrame,
    coresets: Mapping[tuple[str, str], pd.DataFrame],
    learned_above: float,
    failures: Sequence[str] = (),
    demo_settings: Sequence[str] = (),
    leaks: pd.DataFrame | None = None,
    leak_tasks: pd.DataFrame | None = None,
    duplicates: pd.DataFrame | None = None,
    growth: RunGrowth | None = None,
    dropped: Sequence[str] = (),
) -> list[RunWarning]:
    """All warnings of a run, the gravest kind first.

    Args:
        summary, manifest, rejected, cluster_stats: tables of the run.
        coresets: (method, fraction) -> coreset table; random selection and the full data are not checked.
        learned_above: a task on which the full-data model scores no higher is not learned.
        failures: result of `coincide.reporting.summary.failure_lines`.
        demo_settings: result of `coincide.workflow.config.demo_settings`.
        leaks, leak_tasks: pairs and tasks of `coincide.evaluation.leaks.Leaks`; None: leaks are ignored.
        duplicates: table of `coincide.dataset.duplicates.find_duplicates`; None: they are ignored.
        growth: result of `coincide.reporting.growth.read_run_growth`.
        dropped: which of "leaks" and "near_duplicates" the run leaves out of the dataset.
    """
    selected = {key: coreset for key, coreset in coresets.items() if key[0] not in ("full", "random")}
    return [
        *(RunWarning(line, "set it for your data in your config") for line in demo_settings),
        *_leak_warnings(leaks, leak_tasks, coresets, "leaks" in dropped),
        *(RunWarning(*warning) for warning in growth_warnings(growth)),
        *_source_warnings(manifest, selected),
        *_cluster_warnings(cluster_stats, selected),
        *_task_warnings(summary, learned_above),
        *(RunWarning(line.removeprefix("Warning: "), "see the log of evaluate_model") for line in failures),
        *_baseline_warnings(summary),
        *_rejected_warnings(rejected),
        *_duplicate_warnings(duplicates, len(manifest), "near_duplicates" in dropped),
    ]


def _leak_warnings(leaks, tasks, coresets, dropped):
    if leaks is not None and len(leaks) and not dropped:
        leaked = set(leaks["sample_id"])
        in_coresets = ", ".join(
            f"{coreset['sample_id'].isin(leaked).sum():,} in {method} at {100 * float(fraction):.3g}%"
            for (method, fraction), coreset in coresets.items()
            if method != "full"
        )
        yield RunWarning(
            f"{_count(len(leaked), 'sample')} of the dataset show images or ask questions of the evaluation"
            + (f" ({in_coresets})" if in_coresets else ""),
            "dataset.leaks: drop",
        )
    for line in unread_tasks(tasks) if tasks is not None else ():
        yield RunWarning(line, "see the log of leaks")


def _duplicate_warnings(duplicates, samples, dropped):
    repeated = 0 if duplicates is None else int(duplicates["repeats"].count())
    if repeated > MANY_REPEATED * samples and not dropped:
        yield RunWarning(
            f"{_count(repeated, 'sample')} repeat the pictures and the text of an earlier one",
            "dataset.near_duplicates: drop",
        )


def _source_warnings(manifest, coresets):
    for (method, fraction), coreset in coresets.items():
        if len(sources := underrepresented_sources(manifest, coreset)):
            listed = ", ".join(f"{source} ({kept:.1%})" for source, kept in sources.head(8).items())
            rest = f" and {len(sources) - 8} more" if len(sources) > 8 else ""
            yield RunWarning(
                f"{method} at {100 * float(fraction):.3g}% hardly keeps {_count(len(sources), 'source')}: "
                f"{listed}{rest}; "
                "the model may not learn their skills",
                SOURCE_FIX,
            )


def _cluster_warnings(cluster_stats, coresets):
    """Clusters of which coincide keeps less than a quarter of an even share."""
    sizes = cluster_stats["size"]
    for (method, fraction), coreset in coresets.items():
        column = f"budget_{fraction}"
        if method != "coincide" or column not in cluster_stats:
            continue
        even = len(coreset) / sizes.sum() * sizes  # the fraction may be of the new samples only
        low = (cluster_stats[column] < UNDERREPRESENTED_BELOW * even) & (even >= 1)
        if low.any():
            yield RunWarning(
                f"coincide at {100 * float(fraction):.3g}% hardly keeps {_count(int(low.sum()), 'cluster')} of "
                f"{len(cluster_stats):,}, with {sizes[low].sum() / sizes.sum():.1%} of the samples",
                SPREAD_FIX,
            )


def _task_warnings(summary, learned_above):
    for target, tasks in unlearned_tasks(summary, learned_above).groupby(level="target"):
        names = tasks.index.get_level_values("task")
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        yield RunWarning(
            f"{target} did not learn {_count(len(names), 'task')} from the full data: {listed}; they are left out of "
            "relative performance",
            "raise target_model.training.epochs, or choose other evaluation.groups",
        )


def _baseline_warnings(summary):
    methods = set(summary["method"])
    if "full" not in methods:
        yield RunWarning("there is no full-data model to compare with", "target_model.full: true")
    if "random" not in methods:
        yield RunWarning("there is no random selection to compare with", "add random to selection.methods")
    seeds = summary["seed"].nunique()
    if seeds < FEWEST_SEEDS:
        yield RunWarning(
            f"{_count(seeds, 'seed')} of finetuning: no interval, and differences may be chance",
            "target_model.seeds: [0, 1, 2] or more, or replicates (snakemake comparison)",
        )


def _rejected_warnings(rejected):
    for reason, count in rejected["reason"].value_counts().items():
        fix = REASON_FIXES.get(reason, "correct the samples listed below")
        yield RunWarning(f"{_count(count, 'sample')} rejected: {reason}", fix)


def _count(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"
