"""Why no coreset satisfies constraints, with the numbers that clash."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from coincide.base.errors import UserError
from coincide.base.sections import Constraints
from coincide.selection.bounds import Bounds, bounds_of, coreset_budget, least_count, read_ids
from coincide.selection.budget import total_budget
from coincide.selection.growth import Growth

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3  # of unknown ids in a message
KEY = "selection.constraints"


class ConstraintError(UserError):
    """Constraints that no coreset satisfies; the message names the numbers that clash and what to change."""

    def __init__(self, problems: Iterable[str]):
        super().__init__("\n".join(problems))


def conflicts(
    constraints: Constraints,
    samples: pd.DataFrame,
    fractions: Sequence[float],
    *,
    set_aside: Collection[str] = (),
    growths: Sequence[Growth] = (),
) -> list[str]:
    """Why no coreset satisfies the constraints: one line per problem with the numbers that clash and the fix.

    Args:
        constraints: section of the config.
        samples: table of sample_id, source, n_images: the samples that can be selected.
        fractions: shares of the samples that coresets keep.
        set_aside: ids of samples of the dataset that cannot be selected (rejected, or held out for evaluation).
        growths: what each coreset takes over from an earlier run; none: nothing.
    """
    lines = [*_unknown_sources(constraints, samples), *_unknown_ids(constraints, samples, set_aside)]
    lines += shared_ids(constraints)
    if lines:
        return lines  # numbers would be those of misspelt names
    coresets: list[tuple[float, Growth | None]] = [(growth.fraction, growth) for growth in growths]
    for fraction, growth in coresets or [(fraction, None) for fraction in fractions]:
        budget = coreset_budget(constraints, samples, fraction, growth)
        words = budget_in_words(fraction, len(samples))
        if growth:
            words = f"of {growth.method}, {_growth_in_words(growth, samples, budget)}"
        if not budget:
            lines.append(f"selection.fractions: no sample is selected ({words}); raise them")
        lines += numeric_conflicts(bounds_of(constraints, samples, budget, growth), words)
    return lines


def budget_in_words(fraction: float, samples: int) -> str:
    """The budget of a fraction, for messages."""
    return f"{fraction:g} of {samples:,} samples is {total_budget(fraction, samples):,}"


def _growth_in_words(growth, samples, budget):
    """The budget of a coreset that takes over something from an earlier run, for messages."""
    if not growth.only_new:
        return budget_in_words(growth.fraction, len(samples))
    new = int((~samples["sample_id"].isin(growth.old)).sum())
    selected = total_budget(growth.fraction, new)
    return f"{growth.fraction:g} of {new:,} new samples is {selected:,}, with {budget - selected:,} old ones {budget:,}"


def shared_ids(constraints: Constraints) -> list[str]:
    """A line if ids are in both `keep` and `exclude`."""
    if both := sorted(set(read_ids(constraints.keep)) & set(read_ids(constraints.exclude))):
        return [f"{KEY}: {_ids(both, 'in both keep and exclude')}; remove them from one"]
    return []


def _unknown_sources(constraints, samples):
    known = samples["source"].unique().tolist()
    for key in ("at_least", "at_most"):
        for source in getattr(constraints, key):
            if source not in known:
                close = difflib.get_close_matches(source, known, n=3, cutoff=0.5)
                advice = f"did you mean {' or '.join(close)}?" if close else f"sources: {', '.join(sorted(known)[:20])}"
                yield f"{KEY}.{key}: the dataset has no samples of a source {source!r}; {advice}"


def _unknown_ids(constraints, samples, set_aside):
    known, aside = set(samples["sample_id"]), set(set_aside)
    for key in ("keep", "exclude"):
        missing = [
            sample_id for sample_id in dict.fromkeys(read_ids(getattr(constraints, key))) if sample_id not in known
        ]
        unknown = [sample_id for sample_id in missing if sample_id not in aside]
        if unknown:
            yield f"{KEY}.{key}: {_ids(unknown, 'not in the dataset')}; correct or remove them"
        # an excluded sample may as well be rejected or held out
        if key == "keep" and len(unknown) < len(missing):
            ids = [sample_id for sample_id in missing if sample_id in aside]
            yield f"{KEY}.keep: {_ids(ids, 'rejected or held out for evaluation')}; remove them"


def _ids(ids, are):
    """The number of ids, what they are, and examples."""
    examples = ", ".join(map(repr, ids[:EXAMPLES]))
    return f"{len(ids):,} {'id is' if len(ids) == 1 else 'ids are'} {are}: {examples}{', …' * (len(ids) > EXAMPLES)}"


def numeric_conflicts(bounds: Bounds, total: str = "") -> list[str]:
    """Why no coreset satisfies the bounds: one line per problem; none if one does.

    Args:
        bounds: of `bounds_of`.
        total: what the budget is, in words, for the message.
    """
    total = total or f"the coreset has {bounds.budget:,} samples"
    for check in (_single_conflicts, _sum_conflicts, _text_conflicts):
        if lines := list(check(bounds, total)):  # a later check assumes that the earlier ones found nothing
            return lines
    return []


def _single_conflicts(bounds: Bounds, total: str) -> Iterator[str]:
    """Bounds of one source, or of the text-only samples, that clash with each other or with the samples."""
    kept, available = bounds.count(bounds.kept), bounds.count(~bounds.excluded)
    excluded = bounds.count(bounds.excluded)
    kept_by = _kept_by(bounds)
    if (bounds.kept & bounds.excluded).any():
        yield f"{KEY}: {kept_by} a sample that exclude names, too; remove it from one of them"
    rows = [
        (f".{source}", f"of the source {source}", bounds.least[g], bounds.most[g], *counts)
        for g, (source, *counts) in enumerate(
            zip(bounds.groups, kept.sum(axis=1), available.sum(axis=1), excluded.sum(axis=1))
        )
    ]
    text = [counts[:, 1].sum() for counts in (kept, available, excluded)]
    rows.append(("", "without an image", bounds.text_least, bounds.text_most, *text))
    for suffix, which, least, most, must, exist, left_out in rows:
        at_least, at_most = (f"{KEY}{'' if suffix else '.text_only'}.{key}{suffix}" for key in ("at_least", "at_most"))
        if least > exist:
            besides = f" besides {left_out:,} excluded" if left_out else ""
            yield (
                f"{at_least}: {least:,} samples, but there are {exist:,} {which}{besides} ({total}); lower it to at "
                f"most {exist:,}"
            )
        if least > most:
            yield f"{at_least}: {least:,} samples, but at_most is {most:,} ({total}); raise at_most or lower at_least"
        if must > most:
            yield f"{at_most}: {most:,} samples, but {kept_by} {must:,} {which} ({total}); raise it to {must:,}"
    if kept.sum() > bounds.budget and bounds.earlier.any():
        yield (
            f"selection.keep_earlier: {kept_by} {kept.sum():,} samples, but {total}; raise selection.fractions, or "
            "set selection.fraction_of to new"
        )
    elif kept.sum() > bounds.budget:
        yield f"{KEY}.keep: {kept.sum():,} samples, but {total}; shorten it or raise selection.fractions"


def _kept_by(bounds):
    """What names the samples that the coreset must contain."""
    if not bounds.earlier.any():
        return "keep names"
    return "keep and the earlier coreset have" if (bounds.kept & ~bounds.earlier).any() else "the earlier coreset has"


def _sum_conflicts(bounds: Bounds, total: str) -> Iterator[str]:
    """Numbers of all sources that do not fit the budget."""
    least, most = bounds.totals(bounds.count(bounds.kept), bounds.count(~bounds.excluded))
    if least.sum() > bounds.budget:
        parts = [f"{source} {count:,}" for source, count in zip(bounds.groups, least) if count]
        parts += [f"kept samples of other sources {least[-1]:,}"] if least[-1] else []
        yield (
            f"{KEY}: at_least and keep ask for {least.sum():,} samples ({', '.join(parts)}), but {total}; lower them "
            "or raise selection.fractions"
        )
    if most.sum() < bounds.budget:
        parts = [f"{source} {count:,}" for source, count in zip(bounds.groups, most)]
        yield (
            f"{KEY}: at_most and exclude leave {most.sum():,} samples ({', '.join([*parts, f'other {most[-1]:,}'])}), "
            f"but {total}; raise at_most, shorten exclude or lower selection.fractions"
        )


def _text_conflicts(bounds: Bounds, total: str) -> Iterator[str]:
    """Numbers of text-only samples that the other constraints do not allow."""
    fewest, most = bounds.text_range(bounds.count(bounds.kept), bounds.count(~bounds.excluded))
    if bounds.text_least > most:
        yield (
            f"{KEY}.text_only.at_least: {bounds.text_least:,} samples, but the other constraints allow at most "
            f"{most:,} without an image ({total}); lower it, or the at_least of sources with images"
        )
    if bounds.text_most < fewest:
        yield (
            f"{KEY}.text_only.at_most: {bounds.text_most:,} samples, but the other constraints require at least "
            f"{fewest:,} without an image ({total}); raise it, or the at_most of sources with images"
        )


def conflicts_of_settings(constraints: Constraints) -> Iterator[str]:
    """Conflicts that the config shows alone, without the samples: one line per problem."""
    shares = {source: value for source, value in constraints.at_least.items() if isinstance(value, float)}
    if (asked := sum(Fraction(str(share)) for share in shares.values())) > 1:
        parts = ", ".join(f"{source} {share:g}" for source, share in shares.items())
        yield f"{KEY}.at_least: the shares sum to {float(asked):g} ({parts}), but a coreset has 1.0; lower them"
    bounds = [
        (f".{source}", constraints.at_least[source], constraints.at_most[source])
        for source in constraints.at_least
        if source in constraints.at_most
    ]
    text_only = constraints.text_only
    if text_only.at_least is not None and text_only.at_most is not None:
        bounds.append(("", text_only.at_least, text_only.at_most))
    for suffix, least, most in bounds:
        if type(least) is type(most) and least > most:
            key = f"{KEY}{'' if suffix else '.text_only'}.at_least{suffix}"
            yield f"{key}: {least:g} is above at_most ({most:g}); raise at_most or lower at_least"


def conflicts_of_counts(constraints: Constraints, budget: int, total: str) -> Iterator[str]:
    """Conflicts with an upper bound of the budget, before the samples are known: one line per problem.

    Args:
        constraints: section of the config.
        budget: a coreset has at most so many samples.
        total: what the budget is, in words.
    """
    counts = {source: least_count(value, budget) for source, value in constraints.at_least.items()}
    if (asked := sum(counts.values())) > budget:
        parts = ", ".join(f"{source} {count:,}" for source, count in counts.items())
        yield (f"{KEY}.at_least: {asked:,} samples ({parts}), but {total}; lower them or raise selection.fractions")
    if (text := constraints.text_only.at_least) is not None and least_count(text, budget) > budget:
        yield f"{KEY}.text_only.at_least: {text:,} samples, but {total}; lower it or raise selection.fractions"
    if (kept := len(set(read_ids(constraints.keep)))) > budget:
        yield f"{KEY}.keep: {kept:,} samples, but {total}; shorten it or raise selection.fractions"
