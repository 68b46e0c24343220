"""Where the results of a run come from: versions, models, digests, and the commands that repeat it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import coincide
from coincide.base.activation_store import Activations

PACKAGES = ("snakemake", "torch", "transformers", "peft", "lmms-eval", "faiss-cpu", "numpy", "pandas")
Tables = dict[str, list[tuple[str, str]]]


def provenance_tables(
    settings: Mapping[str, Any],
    *,
    preflight: Mapping[str, Any],
    annotations: Mapping[str, Any],
    activations: Activations,
    digests: Mapping[tuple[str, str], str],
    commit: str | None,
) -> Tables:
    """Heading -> rows of name and value.

    Args:
        settings: the config of the run.
        preflight: content of preflight.json, which has the commit or digest of each model.
        annotations: content of samples/annotations.json.
        activations: of the run.
        digests: (method, fraction) -> digest of its coreset.json.
        commit: of the workflow.
    """
    sections = {key: value for key, value in settings.items() if isinstance(value, dict) and "name" in value}
    checked = preflight.get("models", {})
    models = []
    for section, model in sections.items():
        facts = checked.get(section, {})
        revision = facts.get("revision") or model.get("revision")
        digest = facts.get("digest")
        known = f"commit {revision}" if revision else f"digest {digest}" if digest else "not resolved by the check"
        models.append((section, f"{model['name']} ({known})"))
    metadata = activations.metadata[0]
    rows, numbers = activations.shape
    return {
        "Versions": [
            ("coincide", f"{coincide.__version__}{f', commit {commit}' if commit else ''}"),
            ("Python", platform.python_version()),
            *((name, known) for name in PACKAGES if (known := _version(name))),
        ],
        "Models": models,
        "Dataset": [(name, f"sha256 {facts['digest']}") for name, facts in annotations.get("files", {}).items()],
        "Activations": [
            ("rows and numbers per row", f"{rows:,} × {numbers:,}, float16"),
            ("layers", ", ".join(map(str, metadata.get("layers", [])))),
            ("weights of the reference model", str(metadata.get("weights"))),
            *((f"samples of {Path(file).name}", facts["samples_digest"])
              for file, facts in zip(activations.files[:8], activations.metadata)),
        ],
        "Coresets": [(f"{method} {fraction}", f"sha256 {digest}") for (method, fraction), digest in digests.items()],
    }  # fmt: skip


def workflow_commit() -> str | None:
    """Commit of the git checkout that has this package, with "and changes" if files differ; None without one."""
    folder = Path(coincide.__file__).resolve().parent.parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= and changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def repeat_commands(run: str, commit: str | None) -> str:
    """Shell commands that repeat a run from a file with its settings."""
    checkout = [f"git checkout {commit.split()[0]}"] if commit else []
    return "\n".join(
        [
            *checkout,
            "make .venv/ready",
            f"# save the settings as {run}.yaml",
            f".venv/bin/snakemake --profile profiles/local --configfile {run}.yaml",
        ]
    )


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
