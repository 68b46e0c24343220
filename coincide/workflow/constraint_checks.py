"""Checks of `selection.constraints`, and of what coresets take over from an earlier run, before any model runs.

What the config shows alone is checked when it is read (`coincide.workflow.config`). Sources and ids are known from the
manifest: the job that writes it checks them (`check_samples`), and so does a start that finds one (`check_manifests`).
No job depends on the check: with a rule before extraction, a changed constraint would hide what else has changed for
extraction (see `coincide.workflow.recheck`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coincide.base.sections import Config
from coincide.selection.bounds import SAMPLE_COLUMNS
from coincide.selection.conflicts import ConstraintError, conflicts
from coincide.selection.growth import read_growths

if TYPE_CHECKING:
    import pandas as pd


def check_samples(
    configs: Mapping[str, Any], run: str, manifest: pd.DataFrame, set_aside: Iterable[pd.DataFrame]
) -> None:
    """Check the constraints of every run that uses a manifest.

    Args:
        configs: run -> its config, as Snakemake hands it to a script; names that begin with a dot are none.
        run: the run that makes the manifest.
        manifest: table of the samples that can be selected.
        set_aside: tables of samples that cannot: rejected, held out.

    Raises:
        ConstraintError: with every problem of every run.
    """
    import pandas as pd

    runs = {name: Config.model_validate(values) for name, values in configs.items() if not name.startswith(".")}
    ids = pd.concat([table["sample_id"] for table in set_aside]).dropna()
    _check(
        runs,
        {name: (manifest, ids) for name in runs if _manifest_settings(runs[name]) == _manifest_settings(runs[run])},
    )


def _manifest_settings(config):
    """What a manifest depends on: runs that agree in it have the same."""
    dataset = config.dataset
    settings = [section.results_depend_on("manifest") for section in (dataset, config.evaluation)]
    return settings, [getattr(dataset, name) for name in dataset.paths()]


def check_manifests(
    configs: Mapping[str, Config], folders: Mapping[str, tuple[str, str]], new: Collection[str]
) -> None:
    """Check the constraints of the runs whose manifest exists.

    Args:
        configs: run -> its Config.
        folders: run -> the folders of the runs that make its manifest, before and after extraction.
        new: files that jobs are going to write; a manifest among them is checked by its job.

    Raises:
        ConstraintError: with every problem of every run.
    """
    import pandas as pd  # every job reads the Snakefile, which imports this module

    tables = {}
    for run, config in configs.items():
        samples, merged = Path(folders[run][0]) / "samples", Path(folders[run][1])
        if (
            not config.selection.is_constrained
            or f"{samples}/manifest.parquet" in new
            or not (samples / "manifest.parquet").exists()
        ):
            continue
        # after extraction, which may have rejected more samples
        is_merged = f"{merged}/manifest.parquet" not in new and (merged / "manifest.parquet").exists()
        folder = merged if is_merged else samples
        aside = [folder / "rejected.parquet", samples / "holdout.parquet"]
        tables[run] = (
            pd.read_parquet(folder / "manifest.parquet", columns=SAMPLE_COLUMNS),
            pd.concat([pd.read_parquet(path, columns=["sample_id"])["sample_id"] for path in aside]).dropna(),
        )
    _check(configs, tables)


def _check(configs, tables):
    """Check runs: dict of run -> (samples that can be selected, ids of those that cannot)."""
    lines: list[str] = []
    constrained = sum(config.selection.is_constrained for config in configs.values())
    for run, (samples, set_aside) in tables.items():
        selection = configs[run].selection
        if selection.is_constrained:
            growths = read_growths(configs[run])
            found = conflicts(
                selection.constraints, samples, selection.fractions, set_aside=set(set_aside), growths=growths
            )
            lines += [f"{run}: {line}" if constrained > 1 else line for line in found]
    if lines:
        raise ConstraintError(["the constraints cannot be satisfied:", *(f"  {line}" for line in lines)])
