"""Constraints on a coreset in numbers: `selection.constraints` for the samples of a dataset and a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coincide.base.errors import UserError
from coincide.base.sections import Constraints
from coincide.selection.budget import total_budget
from coincide.selection.growth import Growth

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_COLUMNS = ["sample_id", "source", "n_images"]  # of the manifest, what constraints are about


@dataclass(frozen=True)
class Bounds:
    """The constraints on a coreset, in numbers.

    A group is a source with a bound; all other sources are the last group.

    Attributes:
        groups: names of the sources with a bound, (G - 1,).
        cell: (n,) int64: 2 · group of each sample, plus 1 if it has no image.
        kept: (n,) bool, samples that the coreset must contain.
        excluded: (n,) bool, samples that it must not contain.
        least, most: (G,) int64, fewest and most samples of each group.
        text_least, text_most: fewest and most samples without an image.
        budget: number of samples of the coreset.
        earlier: (n,) bool, those of `kept` that the coreset of an earlier run has (`coincide.selection.growth`).
        left_out: (n,) bool, those of `excluded` that are left out because only new samples are selected.
    """

    groups: list[str]
    cell: NDArray[np.int64]
    kept: NDArray[np.bool_]
    excluded: NDArray[np.bool_]
    least: NDArray[np.int64]
    most: NDArray[np.int64]
    text_least: int
    text_most: int
    budget: int
    earlier: NDArray[np.bool_]
    left_out: NDArray[np.bool_]

    def count(self, rows: NDArray) -> NDArray[np.int64]:
        """(G, 2) number of samples of each group with and without an image, among rows or a mask of rows."""
        return np.bincount(self.cell[rows], minlength=2 * len(self.least)).reshape(-1, 2)

    def can_be_met(self, taken: NDArray[np.int64], available: NDArray[np.int64]) -> bool:
        """Whether some coreset contains the samples taken and satisfies every bound.

        Args:
            taken: (G, 2) samples of each group that the coreset contains, as from `count`.
            available: (G, 2) samples that it may contain, those taken included.
        """
        least, most = self.totals(taken, available)
        if (least > most).any() or not least.sum() <= self.budget <= most.sum():
            return False
        fewest, largest = self.text_range(taken, available)
        return max(fewest, self.text_least) <= min(largest, self.text_most)

    def totals(self, taken: NDArray[np.int64], available: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """((G,) fewest, (G,) most) samples that each group can have."""
        return np.maximum(self.least, taken.sum(axis=1)), np.minimum(self.most, available.sum(axis=1))

    def text_range(self, taken: NDArray[np.int64], available: NDArray[np.int64]) -> tuple[int, int]:
        """(fewest, most) samples without an image that a coreset within the other bounds can have.

        Every number between the two is possible: moving one sample at a time from one of two coresets to the other
        changes it by at most one.
        """
        least, most = self.totals(taken, available)
        ends = []
        for kind in (1, 0):  # as few as possible without an image, then as few as possible with one
            other = available[:, 1 - kind]
            needed = np.maximum(taken[:, kind], least - other)  # to reach the fewest samples of the group
            free = np.maximum(np.minimum(most, taken[:, kind] + other) - least, 0)  # further samples of the other kind
            ends.append(int(needed.sum() + max(0, self.budget - least.sum() - free.sum())))
        return ends[0], self.budget - ends[1]

    def satisfied_by(self, rows: NDArray[np.int64]) -> bool:
        """Whether a coreset satisfies every constraint."""
        chosen = np.zeros(len(self.cell), bool)
        chosen[rows] = True
        counts = self.count(rows)
        return bool(
            len(rows) == chosen.sum() == self.budget
            and not (self.kept & ~chosen).any()
            and not (self.excluded & chosen).any()
            and (self.least <= counts.sum(axis=1)).all()
            and (counts.sum(axis=1) <= self.most).all()
            and self.text_least <= counts[:, 1].sum() <= self.text_most
        )


def coreset_budget(
    constraints: Constraints, samples: pd.DataFrame, fraction: float, growth: Growth | None = None
) -> int:
    """Number of samples of a coreset: the fraction of all samples, or of the new ones with the old ones that are kept.

    Args:
        constraints: section of the config.
        samples: table of sample_id, one row per sample.
        fraction: share of the samples to keep.
        growth: what the coreset takes over from an earlier run.
    """
    if growth is None or not growth.only_new:
        return total_budget(fraction, len(samples))
    is_old = samples["sample_id"].isin(growth.old)
    is_kept = samples["sample_id"].isin({*growth.picks, *read_ids(constraints.keep)})
    return int((is_old & is_kept).sum()) + total_budget(fraction, int((~is_old).sum()))


def bounds_of(constraints: Constraints, samples: pd.DataFrame, budget: int, growth: Growth | None = None) -> Bounds:
    """The constraints in numbers, for a budget. A share is of the budget; a least number is rounded up, a most down.

    Args:
        constraints: section of the config.
        samples: table of sample_id, source, n_images, one row per sample.
        budget: number of samples of the coreset.
        growth: what the coreset takes over from an earlier run; its picks that are not among the samples are ignored.
    """
    groups = list(dict.fromkeys([*constraints.at_least, *constraints.at_most]))
    of_source = {source: group for group, source in enumerate(groups)}
    group = samples["source"].map(of_source).fillna(len(groups)).to_numpy(np.int64)
    least, most = np.zeros(len(groups) + 1, np.int64), np.full(len(groups) + 1, budget, np.int64)
    for source, value in constraints.at_least.items():
        least[of_source[source]] = least_count(value, budget)
    for source, value in constraints.at_most.items():
        most[of_source[source]] = min(most_count(value, budget), budget)
    text_only = constraints.text_only
    ids = samples["sample_id"]
    kept = ids.isin(read_ids(constraints.keep)).to_numpy(bool)
    earlier, left_out = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    if growth:
        earlier = ids.isin(growth.picks).to_numpy(bool)
        kept = kept | earlier
    if growth and growth.only_new:
        left_out = ids.isin(growth.old).to_numpy(bool) & ~kept
    return Bounds(
        groups,
        2 * group + (samples["n_images"].to_numpy() == 0),
        kept,
        ids.isin(read_ids(constraints.exclude)).to_numpy(bool) | left_out,
        least,
        most,
        0 if text_only.at_least is None else least_count(text_only.at_least, budget),
        budget if text_only.at_most is None else most_count(text_only.at_most, budget),
        budget,
        earlier,
        left_out,
    )


def least_count(value: int | float, budget: int) -> int:
    """A least number of samples: a count as it is, a share of the budget rounded up, exact in its decimal digits.

    >>> least_count(0.3, 10), least_count(0.3, 11), least_count(7, 10)
    (3, 4, 7)
    """
    return value if isinstance(value, int) else math.ceil(Fraction(str(value)) * budget)


def most_count(value: int | float, budget: int) -> int:
    """A most number of samples: a count as it is, a share of the budget rounded down, exact in its decimal digits."""
    return value if isinstance(value, int) else math.floor(Fraction(str(value)) * budget)


def read_ids(ids: Sequence[str] | str) -> list[str]:
    """The ids of `keep` or `exclude`: the list itself, or those in a file.

    Args:
        ids: ids, or the path of a file: .parquet with a column sample_id, .json with a list of ids or of records with
            an id, or text with one id per line.

    Raises:
        UserError: the file cannot be read, or has no ids.
    """
    if not isinstance(ids, str):
        return list(ids)
    path = Path(ids)
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=["sample_id"])["sample_id"].cast(pa.string()).to_pylist()
        if path.suffix == ".json":
            items = json.loads(path.read_text(encoding="utf-8"))
            return [str(item["id"] if isinstance(item, dict) else item) for item in items]
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as a list of sample ids ({error or type(error).__name__}); give a text file with "
            "one id per line, a .json list of ids or of records with an id, or a .parquet file with a column sample_id"
        ) from None
