"""Write the conda environment file of each stage, with the pins of requirements.lock."""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMON = [
    "numpy",
    "pandas",
    "pyarrow",
    "ijson",
    "xxhash",
    "pillow",
    "pydantic",
    "psutil",
    "pyyaml",
    "tqdm",
    "setuptools",
    "tabulate",
]
MODELS = ["torch", "torchvision", "transformers", "num2words", "tokenizers", "safetensors", "accelerate", "datasets"]
STAGES = {
    "dataset": [*COMMON, "easy-vqa", "scikit-learn", "datasets"],
    "extraction": [*COMMON, *MODELS],
    "selection": [*COMMON, "torch", "numba", "threadpoolctl", "faiss-cpu"],
    "training": [*COMMON, *MODELS, "peft"],
    "evaluation": [*COMMON, *MODELS, "peft", "lmms-eval", "decord"],
    "reporting": [*COMMON, "matplotlib", "jinja2"],
}


def pins():
    """Version of every package in the lock, for Python 3.11."""
    found = {}
    for line in (HERE.parent / "requirements.lock").read_text().splitlines():
        name, version, marker = re.match(r"([\w.-]+)==([^ ;]+)(?: ; (.*))?$", line).groups()
        if not (marker and ">= '3.12'" in marker):
            found[name] = version
    return found


def environment(stage):
    """Text of a stage's environment file."""
    versions = pins()
    lines = [f"# Written by {Path(__file__).name}; change that and run `make envs`."]
    lines += [
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
    ]
    lines += [f"      - {name}=={versions[name]}" for name in STAGES[stage]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for stage in STAGES:
        (HERE / f"{stage}.yaml").write_text(environment(stage))
