"""The datasets and small models that the default config builds itself."""

from pathlib import Path

PRETRAINED = Path(__file__).parent / "weights"  # the models that `coincide.demo.pretraining` made
