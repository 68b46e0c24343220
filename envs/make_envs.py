"""Write the conda environment file of each room: what its scripts import, with the pins of requirements.lock.

A rule names its environment file and its script. The script's imports are followed through the package, those inside
functions included, so that an environment file holds what its jobs need and nothing else.
"""

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# import name -> package, where the names differ; packages of GPU sites are installed by hand
PACKAGES = {
    "PIL": ["pillow"],
    "pydantic_core": ["pydantic"],
    "easy_vqa": ["easy-vqa"],
    "faiss": ["faiss-cpu"],
    "huggingface_hub": ["huggingface-hub"],
    "lmms_eval": ["lmms-eval", "decord"],  # its model registry imports decord
    "sklearn": ["scikit-learn"],
    "torch": ["torch", "torchvision"],  # a pair of versions
    # its Trainer wants accelerate, its chat templates jinja2, the processor of SmolVLM num2words
    "transformers": ["transformers", "accelerate", "jinja2", "num2words"],
    "yaml": ["pyyaml"],
}
NOT_ON_CPU = {"cuml", "cupy", "dask", "dask_cuda"}


def rules():
    """(environment, script) of every rule that has both."""
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for block in re.split(r"^(?:rule|checkpoint) ", path.read_text(), flags=re.MULTILINE)[1:]:
            environment = re.search(r'"\.\./envs/(\w+)\.yaml"', block)
            script = re.search(r'"\.\./workflow_scripts/(\w+)\.py"', block)
            if environment and script:
                yield environment[1], ROOT / f"workflow_scripts/{script[1]}.py"


def imports(path):
    """Dotted names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(name):
    """Files of the package that importing a dotted name runs."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ROOT.joinpath(*parts[:length])
        yield from (path for path in (module / "__init__.py", module.with_suffix(".py")) if path.is_file())
    if name == "coincide.methods":  # its modules are imported by name
        yield from (ROOT / "coincide/methods").glob("*.py")


def third_party(scripts):
    """Names of the packages outside the standard library that scripts import, through the project's package."""
    pending, seen, names = list(scripts), set(), set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            top = name.split(".")[0]
            if top == "coincide":
                pending += files_of(name)
            elif top not in sys.stdlib_module_names:
                names.add(top)
        if ".to_markdown(" in path.read_text():
            names.add("tabulate")  # pandas imports it there
    return names - NOT_ON_CPU


def pins():
    """Version of every package in the lock, for Python 3.11."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, version, marker = re.match(r"([\w.-]+)==([^ ;]+)(?: ; (.*))?$", line).groups()
        if not (marker and ">= '3.12'" in marker):
            versions[name] = version
    return versions


def packages(environment):
    """Packages of an environment, sorted."""
    names = third_party([script for other, script in rules() if other == environment])
    names |= {"pyarrow"} if "pandas" in names else set()  # pandas reads Parquet with it
    return sorted({package for name in names for package in PACKAGES.get(name, [name])})


def environment_text(environment):
    """Text of an environment file."""
    versions = pins()
    lines = [
        f"# Written by {Path(__file__).name}: change that, or the imports of the scripts, and run `make envs`.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
        *(f"      - {name}=={versions[name]}" for name in packages(environment)),
    ]
    return "\n".join(lines) + "\n"


def environments():
    """Names of all environments."""
    return sorted({environment for environment, _ in rules()})


if __name__ == "__main__":
    for name in environments():
        (HERE / f"{name}.yaml").write_text(environment_text(name))
