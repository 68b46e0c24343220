"""The environment files of the rooms: their jobs can start in them."""

import ast
import importlib.metadata as metadata
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import REPO
from packaging.requirements import Requirement

TOOL = runpy.run_path(str(REPO / "envs/make_envs.py"))
RULES = sorted(TOOL["rules"]())


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(packages):
    """Installed distributions of packages and of what they require."""
    pending, seen = list(packages), {}
    while pending:
        requirement = Requirement(pending.pop())
        if normal(requirement.name) in seen:
            continue
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:  # for other platforms
            continue
        seen[normal(requirement.name)] = distribution
        for text in distribution.requires or []:
            parsed = Requirement(text)
            extras = ["", *requirement.extras]
            if parsed.marker is None or any(parsed.marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(text.partition(";")[0])
    return seen.values()


def site_packages(folder, packages):
    """A folder with links to the files of these packages and of what they require, and to no others."""
    folder.mkdir()
    for distribution in closure(packages):
        for name in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / name
            if not link.exists():
                link.symlink_to(distribution.locate_file(name))
    return folder


def imports_of(script):
    """Source of the imports of a script."""
    tree = ast.parse(script.read_text())
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


def run_python(code, site, cwd):
    """Run code in this Python with the standard library, one folder of packages, and the package of the workflow."""
    start = f"import sys\nsys.path = [p for p in sys.path if 'site-packages' not in p] + [{str(site)!r}]\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", start + code],
        cwd=cwd,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},  # as `offer_package` sets it
        check=False,
    )


@pytest.mark.parametrize("environment", TOOL["environments"]())
def test_environment_files_hold_what_the_imports_need(environment):
    committed = (REPO / "envs" / f"{environment}.yaml").read_text()
    assert committed == TOOL["environment_text"](environment), "run `make envs`"


def test_every_script_has_an_environment():
    assert {script for _, script in RULES} == set((REPO / "workflow_scripts").glob("*.py"))


@pytest.mark.parametrize("environment", TOOL["environments"]())
def test_jobs_start_in_their_environment(environment, tmp_path):
    pins = (REPO / f"envs/{environment}.yaml").read_text().split("  - pip:\n")[1]
    packages = [line.strip().removeprefix("- ").partition("==")[0] for line in pins.splitlines()]
    site = site_packages(tmp_path / "site", packages)
    code = "\n".join(imports_of(script) for name, script in RULES if name == environment)
    assert code.count("from coincide.workflow.job import start") >= 1
    done = run_python(code, site, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_package_that_is_missing_is_noticed(tmp_path):
    site = site_packages(tmp_path / "site", ["pandas"])
    assert run_python("import pandas, numpy", site, tmp_path).returncode == 0
    assert "No module named 'torch'" in run_python("import torch", site, tmp_path).stderr
