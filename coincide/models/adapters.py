"""Checkpoints that hold an adapter; without the libraries that load models."""

from pathlib import Path

ADAPTER = "adapter_config.json"  # written by peft next to an adapter's weights


def is_adapter(name: str | Path) -> bool:
    """Whether a folder holds an adapter (peft) instead of whole weights."""
    return (Path(name) / ADAPTER).is_file()
