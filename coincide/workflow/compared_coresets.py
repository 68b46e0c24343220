"""Which files `snakemake compare` reads: those of two runs, or of two single coresets (`compare` of the config)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from coincide.workflow.config import ConfigError
from coincide.workflow.stages import CORESET, Runs

RESULTS = "results"
FULL = "full"
CORESET_FOLDER = re.compile(r"(?P<run>.*)/coresets/(?P<method>[^/]+)/(?P<fraction>[^/]+)")


@dataclass(frozen=True)
class Side:
    """One of the two sides of a comparison.

    Attributes:
        name: as the config gives it, without results/.
        manifest, clusters: paths of the tables of its samples.
        coresets: (method, fraction) -> path of its coreset.parquet.
    """

    name: str
    manifest: str
    clusters: str
    coresets: dict[tuple[str, str], str]


def compared_names(runs: Runs) -> list[str]:
    """The two names that the config compares: `compare`, or else the first two of its runs; none with a single run."""
    first = next(iter(runs.configs.values()))
    names = first.compare or list(runs)[:2]
    return names if len(names) == 2 else []


def comparison_folder(runs: Runs) -> str:
    """Folder of the results of a comparison."""
    names = [
        re.sub(r"[^A-Za-z0-9._-]+", "-", _short_name(name).replace("/coresets/", "-")) for name in compared_names(runs)
    ]
    return f"{RESULTS}/{'-'.join(['compare', *names])}"


def compared_sides(runs: Runs) -> tuple[Side, Side]:
    """The files of both sides.

    Files of a run of this config are where the rules write them, so that what is missing is computed. Others are
    absolute paths, which no rule writes: they are compared as they are.

    Raises:
        ConfigError: nothing is named, a name is neither a run nor a folder with results, or a file is missing.
    """
    names = compared_names(runs)
    if not names:
        raise ConfigError(
            ["compare: name two runs or two coresets, such as --config compare='[results/first, results/second]'"]
        )
    first, second = (_side(runs, name) for name in names)
    return first, second


def compared_pairs(first: Side, second: Side) -> dict[str, tuple[str, str]]:
    """Label -> paths of a coreset of the first side and of one of the second.

    Two single coresets are a pair. Otherwise coresets of the same method and fraction are, without those of the full
    data.

    Raises:
        ConfigError: there is no pair.
    """
    if len(first.coresets) == len(second.coresets) == 1:
        (key_a, path_a), (key_b, path_b) = *first.coresets.items(), *second.coresets.items()
        label = _label(key_a) if key_a == key_b else f"{_label(key_a)} and {_label(key_b)}"
        return {label: (path_a, path_b)}
    common = [key for key in first.coresets if key in second.coresets and key[0] != FULL]
    if not common:
        lists = "; ".join(f"{side.name} has {', '.join(map(_label, side.coresets))}" for side in (first, second))
        raise ConfigError(
            [
                f"compare: no coresets of the same method and fraction; {lists}. Name two coresets instead, such as "
                f"[{RESULTS}/{first.name}/coresets/<method>/<fraction>, …]"
            ]
        )
    return {_label(key): (first.coresets[key], second.coresets[key]) for key in common}


def _label(key):
    method, fraction = key
    return f"{method} {fraction}"


def _short_name(name):
    return os.path.normpath(name).removeprefix(f"{RESULTS}/")


def _side(runs, name):
    short = _short_name(name)
    match = CORESET_FOLDER.fullmatch(short)
    run = match["run"] if match else short
    key = (match["method"], match["fraction"]) if match else None
    return _own_side(runs, short, run, key) if run in runs.configs else _other_side(name, short, key)


def _own_side(runs, name, run, key):
    """A run of this config, or one of its coresets."""
    config = runs.configs[run]
    fractions = [f"{fraction:g}" for fraction in config.selection.fractions]
    keys = [(method, fraction) for method in config.selection.methods for fraction in fractions]
    if key and key not in [*keys, (FULL, "1")]:
        raise ConfigError([f"compare: {name} is no coreset of the config; it has {', '.join(map(_label, keys))}"])
    coresets = {
        (method, fraction): f"{runs.folder(run, CORESET, method=method)}/{_coreset_path(method, fraction)}"
        for method, fraction in ([key] if key else keys)
    }
    folders = {stage: runs.folder(run, stage) for stage in ("merge", "clusters")}
    return Side(name, f"{folders['merge']}/manifest.parquet", f"{folders['clusters']}/clusters.parquet", coresets)


def _other_side(name, short, key):
    """A run of another config, or one of its coresets, from its folder."""
    folder = Path(name) if os.path.isdir(name) else Path(RESULTS) / short
    run_folder = folder.parents[2] if key else folder
    paths = [folder / "coreset.parquet"] if key else sorted(folder.glob("coresets/*/*/coreset.parquet"))
    if not folder.is_dir() or not paths:
        raise ConfigError([f"compare: {name} is neither a run of the config nor a folder with coresets"])
    tables = [run_folder / "manifest.parquet", run_folder / "clusters.parquet"]
    missing = [path for path in [*tables, *paths] if not path.is_file()]
    if missing:
        raise ConfigError(
            [
                f"compare: {missing[0]} does not exist. If {short} shares it with another run of its config, give that "
                "config with --configfile; otherwise run `snakemake select` for it first"
            ]
        )
    coresets = {(path.parts[-3], path.parts[-2]): str(path.absolute()) for path in paths}
    return Side(short, *(str(table.absolute()) for table in tables), coresets)


def _coreset_path(method, fraction):
    return f"coresets/{method}/{fraction}/coreset.parquet"
