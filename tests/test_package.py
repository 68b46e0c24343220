"""The package as others install it: a wheel that holds every room, and a light import."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import REPO

HEAVY = ("numpy", "pandas", "pyarrow", "numba", "torch", "scipy", "transformers", "pydantic")
USE_ALL = """
import numpy as np
import coincide
assert coincide.__file__.startswith({target!r}), coincide.__file__
x = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
clustering = coincide.spherical_kmeans(x, 4)
transferability = coincide.transferability(clustering.centroids)
density = coincide.density(x, clustering.labels)
sizes = np.bincount(clustering.labels, minlength=4)
assert coincide.allocate(transferability / density, sizes, 12).sum() == 12
assert len(set(coincide.greedy_mmd(x[clustering.labels == 0], 3))) == 3
coreset = coincide.select(x, clustering.labels, clustering.centroids, fraction=0.2)
assert len(coreset.indices) == 12
from coincide.reporting import report
from importlib.resources import files
assert files("coincide.reporting").joinpath("templates/report.html").is_file()
assert files("coincide.reporting").joinpath("templates/browser/browser.js").is_file()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools builds inside the source folder, and would reuse an earlier build there
    shutil.copytree(REPO / "coincide", source / "coincide", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPO / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("coincide/")}
    paths = [path for path in (REPO / "coincide").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {str(path.relative_to(REPO)) for path in paths}
    assert inside == files


def test_the_public_functions_run_from_the_installed_wheel(wheel, tmp_path):
    target = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r})\n" + USE_ALL.format(target=str(target))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import coincide", HEAVY),
        # what the Snakefile imports
        (
            "import coincide.methods, coincide.workflow.config, coincide.workflow.job, coincide.workflow.lock, "
            "coincide.workflow.overlay, coincide.workflow.plan, coincide.workflow.stages",
            ("pandas", "numba", "torch", "scipy", "transformers"),
        ),
        # what every script imports first
        ("import coincide.workflow.job", ("pandas", "numba", "torch", "scipy", "transformers", "numpy")),
    ],
)
def test_importing_loads_nothing_heavy(statement, absent):
    code = f"{statement}\nimport sys\nprint(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, text=True, capture_output=True, check=True)
    assert done.stdout.split() == []


def test_public_names_are_listed_and_unknown_ones_are_not():
    import coincide

    assert set(coincide.__all__) <= set(dir(coincide))
    assert all(callable(getattr(coincide, name)) for name in coincide.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        coincide.nonsense  # noqa: B018
