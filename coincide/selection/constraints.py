"""Constraints on a coreset: numbers per source, numbers of text-only samples, samples to keep and samples to exclude.

Every method ranks samples. `constrain` goes through them in this order and takes each sample after which the
constraints can still be satisfied. So a coreset that satisfies the constraints anyway stays as it is. Otherwise, only
the last samples of the order make room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from coincide.base.sections import Constraints
from coincide.selection.bounds import (
    SAMPLE_COLUMNS,
    Bounds,
    bounds_of,
    coreset_budget,
    least_count,
    most_count,
    read_ids,
)
from coincide.selection.conflicts import ConstraintError, conflicts, numeric_conflicts
from coincide.selection.growth import Growth

log = logging.getLogger(__name__)


def read_bounds(
    constraints: Constraints,
    manifest: Path | str,
    sample_ids: ArrayLike,
    fraction: float,
    growth: Growth | None = None,
) -> Bounds | None:
    """The constraints in numbers, for the coreset of a fraction; None if there are none.

    Args:
        constraints: section of the config.
        manifest: path of manifest.parquet, a table with sample_id, source and n_images.
        sample_ids: (n,) samples that can be selected, in the order of the rows.
        fraction: share of the samples to keep.
        growth: what the coreset takes over from an earlier run.

    Raises:
        ConstraintError: no coreset satisfies the constraints.
    """
    if not constraints.is_set and growth is None:
        return None
    table = pd.read_parquet(manifest, columns=SAMPLE_COLUMNS)
    samples = table.set_index("sample_id").loc[np.asarray(sample_ids)].reset_index()
    if clashes := conflicts(constraints, samples, [fraction], growths=[growth] if growth else ()):
        raise ConstraintError(clashes)
    bounds = bounds_of(constraints, samples, coreset_budget(constraints, samples, fraction, growth), growth)
    if growth:
        kept, new = int(bounds.earlier.sum()), int((~samples["sample_id"].isin(growth.old)).sum())
        log.info("%d of %d samples are new; %d of %d are kept", new, len(samples), kept, len(growth.picks))
    return bounds


def constrain(
    first_picks: Callable[[int], NDArray[np.int64]], bounds: Bounds
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The coreset that satisfies the constraints and otherwise follows a method's order.

    Samples to keep are taken first. Then each sample, in the method's order, is taken if some coreset that satisfies
    the constraints contains it and all samples taken before. If the method's own coreset satisfies the constraints, it
    is the result. Where only new samples are selected, the others are no part of the method's order.

    Args:
        first_picks: takes a number and returns at least as many rows, the first picks of the method in its order. It is
            called with more than the budget only if the method's own coreset does not satisfy the constraints.
        bounds: of `bounds_of`.

    Returns:
        ((B,) rows in the method's order, those last that are only in the coreset because they are to be kept; (B,)
        bool: the sample is not in the coreset that the method alone selects).

    Raises:
        ConstraintError: no coreset satisfies the constraints.
    """
    if clashes := numeric_conflicts(bounds):
        raise ConstraintError(clashes)
    n, budget = len(bounds.cell), bounds.budget
    if bounds.left_out.any():
        first_picks = _without(first_picks, bounds.left_out)
    order = np.asarray(first_picks(budget))[:budget]
    if bounds.satisfied_by(order):
        return order, np.zeros(budget, bool)
    picked = np.zeros(n, bool)  # by the method alone
    picked[order] = True
    while (taken := _take(order, bounds)) is None:
        # a method's first picks may depend on how many it is asked for: earlier ones keep their place
        known = np.zeros(n, bool)
        known[order] = True
        longer = np.asarray(first_picks(min(2 * len(order), n)))
        order = np.concatenate([order, longer[~known[longer]]])
    position = np.empty(n, np.int64)
    position[order] = np.arange(len(order))
    position[bounds.kept & ~picked] = n
    rows = np.flatnonzero(taken)
    rows = rows[np.argsort(position[rows], kind="stable")]
    return rows, ~picked[rows]


def _without(first_picks, left_out):
    """The first picks of a method without some rows."""

    def first_candidates(count):
        asked, wanted = count, min(count, int((~left_out).sum()))
        while True:
            rows = np.asarray(first_picks(asked))
            rows = rows[~left_out[rows]]
            if len(rows) >= wanted:
                return rows
            asked = min(2 * asked, len(left_out))

    return first_candidates


def _take(order, bounds):
    """(n,) bool: samples of the coreset; None if the order ends before the budget is met."""
    taken = bounds.kept.copy()
    counts, available = bounds.count(taken), bounds.count(~bounds.excluded)
    waiting = order[~(bounds.kept | bounds.excluded)[order]]
    # Once a sample of a cell cannot be taken, no later one can. So all samples up to the first that cannot be taken are
    # taken at once, and what waits in its cell is dropped.
    while missing := bounds.budget - counts.sum():
        block = waiting[:missing]
        fits = _longest_prefix(block, counts, available, bounds)
        taken[block[:fits]] = True
        counts = counts + bounds.count(block[:fits])
        if fits < len(block):
            rest = waiting[fits:]
            waiting = rest[bounds.cell[rest] != bounds.cell[rest[0]]]
        elif fits < missing:
            return None
    return taken


def _longest_prefix(block, counts, available, bounds):
    """Number of the first rows of a block that can be taken together; if some rows can be, so can fewer."""

    def is_possible(number):
        return bounds.can_be_met(counts + bounds.count(block[:number]), available)

    if is_possible(len(block)):
        return len(block)
    low, high = 0, len(block)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_possible(middle) else (low, middle)
    return low


def by_turns(clusters: ArrayLike, budgets: ArrayLike, logits: ArrayLike) -> NDArray[np.int64]:
    """The order in which the picks of all clusters are constrained.

    Pick j = 0, 1, … of a cluster with budget b has the turn (j + ½) / b, so that every cluster's last picks are the
    last ones of the order. Further picks follow, in the order of (j - b + ½) / share: the clusters go on in proportion
    to their shares. Ties go to the first row.

    Args:
        clusters: (m,) cluster of each pick; the picks of a cluster are in the order picked, its budget first.
        budgets: (K,) budgets.
        logits: (K,) logarithms of the shares, up to a constant.

    Returns:
        (m,) positions in `clusters`; the first budgets.sum() of them are the picks within the budgets.

    >>> by_turns([0, 0, 0, 0, 1, 1], [3, 1], [0.0, 0.0]).tolist()
    [0, 1, 4, 2, 3, 5]
    """
    clusters, budgets = np.asarray(clusters), np.asarray(budgets)
    by_cluster = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[by_cluster], np.arange(len(budgets)))
    number = np.empty(len(clusters), np.int64)
    number[by_cluster] = np.arange(len(clusters)) - starts[clusters[by_cluster]]
    budget = budgets[clusters]
    within = number < budget
    turn = np.where(
        within,
        (number + 0.5) / np.maximum(budget, 1),
        np.log(np.maximum(number - budget, 0) + 0.5) - np.asarray(logits, np.float64)[clusters],
    )
    return np.lexsort((turn, ~within))


def constrain_clusters(
    picks: NDArray[np.int64], labels: NDArray, stats: pd.DataFrame, bounds: Bounds
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The coreset of coincide that satisfies the constraints: `constrain` in the order of `by_turns`.

    Args:
        picks: (m,) rows, in the order of `coincide.selection.picks.rank_picks`, beyond the budgets if there are bounds.
        labels: (n,) clusters.
        stats: table with columns logit and budget, row i for cluster i.
        bounds: of `bounds_of`.

    Returns:
        as `constrain`, in the order of `picks`.
    """
    turns = picks[by_turns(labels[picks], stats["budget"], stats["logit"])]
    rows, is_added = constrain(lambda count: turns[:count], bounds)
    position = np.empty(len(labels), np.int64)
    position[picks] = np.arange(len(picks))
    order = np.argsort(position[rows], kind="stable")
    return rows[order], is_added[order]


def reasons(bounds: Bounds, rows: NDArray[np.int64], is_added: NDArray[np.bool_]) -> pd.Series:
    """(B,) what each sample of a coreset is due to: earlier (coreset), keep, bounds (of sources or text), or missing.

    Args:
        bounds: of `bounds_of`.
        rows, is_added: of `constrain`.
    """
    names = np.select([bounds.earlier[rows], bounds.kept[rows], is_added], ["earlier", "keep", "bounds"], default="")
    return pd.Series(names, dtype="string").replace("", pd.NA)


def outcome(constraints: Constraints, samples: pd.DataFrame, coreset: pd.DataFrame) -> pd.DataFrame:
    """What each constraint asked for and what a coreset has: table of constraint, asked, got (numbers of samples).

    Args:
        constraints: section of the config.
        samples: table of sample_id, source, n_images.
        coreset: table of sample_id.
    """
    budget = len(coreset)
    selected = samples[samples["sample_id"].isin(coreset["sample_id"])]
    by_source = selected["source"].value_counts()
    text_only = int((selected["n_images"] == 0).sum())
    rows = [(f"at least, {s}", least_count(v, budget), by_source.get(s, 0)) for s, v in constraints.at_least.items()]
    rows += [(f"at most, {s}", most_count(v, budget), by_source.get(s, 0)) for s, v in constraints.at_most.items()]
    if constraints.text_only.at_least is not None:
        rows.append(("at least, text only", least_count(constraints.text_only.at_least, budget), text_only))
    if constraints.text_only.at_most is not None:
        rows.append(("at most, text only", most_count(constraints.text_only.at_most, budget), text_only))
    for key, asked in (("keep", None), ("exclude", 0)):
        if ids := set(read_ids(getattr(constraints, key))):
            rows.append((key, len(ids) if asked is None else asked, int(selected["sample_id"].isin(ids).sum())))
    return pd.DataFrame(rows, columns=["constraint", "asked", "got"]).astype({"asked": int, "got": int})
