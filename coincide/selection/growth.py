"""What coresets take over from the finished run that the dataset extends: its picks, and which samples are new."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from coincide.base.sections import Config
from coincide.dataset.earlier import read_sample_ids
from coincide.selection.budget import total_budget


@dataclass(frozen=True)
class Growth:
    """What the coreset of a method and a fraction takes over from a finished run.

    Attributes:
        method, fraction: of the coreset.
        folder: of the finished run.
        old: ids of the samples of that run; all others are new.
        picks: ids of the samples that its coreset of the same method and fraction has, if they are kept.
        only_new: the fraction is of the new samples, and no other old samples than `picks` are selected.
    """

    method: str
    fraction: float
    folder: str
    old: Collection[str]
    picks: Collection[str] = field(default_factory=frozenset)
    only_new: bool = False


def earlier_coreset(folder: str | Path, method: str, fraction: float) -> Path:
    """Path of the coreset.parquet of a finished run."""
    return Path(folder) / "coresets" / method / f"{fraction:g}" / "coreset.parquet"


def read_growth(config: Config, method: str, fraction: float) -> Growth | None:
    """What a coreset takes over from the run that the dataset extends; None if the config asks for nothing.

    Args:
        config: Config of the run.
        method, fraction: of the coreset.
    """
    selection, folder = config.selection, config.dataset.extends
    if folder is None or not selection.takes_over:
        return None
    return Growth(
        method,
        fraction,
        folder,
        old=read_sample_ids(Path(folder) / "manifest.parquet"),
        picks=read_sample_ids(earlier_coreset(folder, method, fraction)) if selection.keep_earlier else frozenset(),
        only_new=selection.fraction_of == "new",
    )


def read_growths(config: Config) -> list[Growth]:
    """`read_growth` of every coreset of a run."""
    growths = [
        read_growth(config, method, fraction)
        for method in config.selection.methods
        for fraction in config.selection.fractions
    ]
    return [growth for growth in growths if growth]


def growth_problems(config: Config, samples: int | None, excluded: Collection[str]) -> Iterator[str]:
    """What of the finished run is missing or clashes with the config: one line per problem, with the fix.

    Args:
        config: Config of the run.
        samples: upper bound of the number of samples; None: not known.
        excluded: ids that `selection.constraints.exclude` names.
    """
    selection, folder = config.selection, config.dataset.extends
    if folder is None or not selection.takes_over:
        return
    for method in selection.methods if selection.keep_earlier else ():
        for fraction in selection.fractions:
            path = earlier_coreset(folder, method, fraction)
            try:
                picks = read_sample_ids(path)
            except (OSError, KeyError, pa.ArrowException):
                yield (
                    f"selection.keep_earlier: {folder} has no coreset of {method} at {fraction:g}"
                    f"{_available(folder)}; select it in that run, remove it here, or set keep_earlier to false and "
                    "name a coreset in selection.constraints.keep"
                )
                continue
            yield from _clashes(config, method, fraction, picks, samples, excluded)


def _clashes(config, method, fraction, picks, samples, excluded):
    """Clashes of the picks of a finished run with the numbers and ids of the config."""
    folder = config.dataset.extends
    if both := sorted(picks & set(excluded)):
        yield (
            f"selection.constraints.exclude: it names {len(both):,} sample{'s' * (len(both) > 1)} of the coreset of "
            f"{method} at {fraction:g} of {folder}, which selection.keep_earlier keeps ({both[0]!r}"
            f"{', …' * (len(both) > 1)}); remove them from it, or set keep_earlier to false"
        )
    budget = None if samples is None else total_budget(fraction, samples)
    if config.selection.fraction_of == "all" and budget is not None and len(picks) > budget:
        yield (
            f"selection.keep_earlier: the coreset of {method} at {fraction:g} of {folder} has {len(picks):,} samples, "
            f"but {fraction:g} of {samples:,} samples is {budget:,}; raise selection.fractions, or set "
            "selection.fraction_of to new"
        )


def _available(folder):
    """The coresets that a finished run has, for a message."""
    paths = sorted(Path(folder).glob("coresets/*/*/coreset.parquet"))
    names = [f"{path.parts[-3]} at {path.parts[-2]}" for path in paths if path.parts[-3] != "full"]
    return f" (it has {', '.join(names)})" if names else " (it has none)"
