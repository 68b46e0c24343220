"""Every command of the documentation runs as printed, on small data: commands of the workflow as dry runs.

Commands are the indented blocks and the inline code of the pages, and the indented lines in comments of the configs.
Each runs in a copy of the checkout whose `.venv/bin/snakemake` adds `-n`. Code and settings in fenced blocks are run
and checked as well.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from conftest import REPO, environment, make_record, write_dataset
from PIL import Image
from snakemake.utils import update_config

from coincide.dataset.formats import read_records
from coincide.workflow.overlay import check_runs

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "config/README.md", *sorted((REPO / "docs").glob("*.md"))]
CONFIGS = [REPO / "config.yaml", *sorted((REPO / "config").glob("*.yaml"))]
# the beginnings of inline code that is a command
INLINE = r"(?:\.venv/bin/|/path/to/other/bin/|\$S/|snakemake |make |python |pip )"
SHELL = ("indented", "inline", "", "bash", "sh", "console")  # languages of blocks that are commands
# beginnings of indented blocks that are not commands
NOT_COMMANDS = {
    "Snakefile, config.yaml ": "the layout of the repository",
    "results/llava665k: running": "an output",
}
# parts of commands that are not run here, and why; their program exists, if it is one of .venv
NOT_RUN = {
    ".venv/bin/pre-commit install": "changes the hooks of the checkout",
    ".venv/bin/hf download": "downloads a model",
    ".venv/bin/lmms-eval --tasks gqa": "downloads a benchmark",
    "/path/to/other/bin/pip install": "installs into another environment",
    "llamafactory-cli train": "another trainer, see tests/clients",
    "swift sft": "another trainer, see tests/clients",
    "deepspeed llava/train": "another trainer, see tests/clients",
    "snakemake compare ": "needs two finished runs, see tests/workflow/test_browse_compare.py",
}
# commands about the results of a run: they run in a finished one
OF_RESULTS = ("--report", "coincide.workflow.status")
# run by make itself; the others as `make -n`, since they install packages, run tests or write into the checkout
MADE = ("demo", "check", "slurm-profile")
SNAKEMAKE = """#!/bin/bash
case " $* " in
  *" --profile "*|*" --cores "*) exec {snakemake} -n "$@" ;;
  *) echo "neither --profile nor --cores; with -n, Snakemake would not refuse this" >&2; exit 1 ;;
esac
"""
PYTHON = """#!/bin/bash
case " $* " in
  *" pytest "*) exec {python} "$@" --collect-only -q ;;
  *) exec {python} "$@" ;;
esac
"""
MAKE = """#!/bin/bash
case "$1" in
  {made}) exec {make} "$@" ;;
  *) exec {make} -n "$@" ;;
esac
"""


@dataclass(frozen=True)
class Block:
    """Code of a page.

    Attributes:
        text: the code, without indentation.
        language: of a fenced block; "indented" or "inline" otherwise.
        origin: page and line.
    """

    text: str
    language: str
    origin: str


def blocks_of(path):
    """The code blocks and the inline commands of a page."""
    name, lines = str(path.relative_to(REPO)), path.read_text().splitlines()
    i, previous = 0, ""
    while i < len(lines):
        line, start = lines[i], i
        if fence := re.match(r"( *)```(\w*)$", line):
            i += 1
            while lines[i].strip() != "```":
                i += 1
            text = "\n".join(code.removeprefix(fence[1]) for code in lines[start + 1 : i])
            yield Block(text, fence[2], f"{name}:{start + 1}")
        elif line.startswith("    ") and not previous:
            while i + 1 < len(lines) and (lines[i + 1].startswith("    ") or not lines[i + 1]):
                i += 1
            text = "\n".join(code.removeprefix("    ") for code in lines[start : i + 1]).strip()
            yield Block(text, "indented", f"{name}:{start + 1}")
            i -= not lines[i]  # the blank line before an indented block
        else:
            for command in re.findall(f"`({INLINE}[^`]*)`", line):
                yield Block(command, "inline", f"{name}:{start + 1}")
        previous = lines[i]
        i += 1


def comments_of(path):
    """The commands in the comments of a config."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.match(r"#  +(\S.*)$", line):
            yield Block(match[1], "indented", f"{path.relative_to(REPO)}:{number}")


def all_blocks():
    return [block for path in PAGES for block in blocks_of(path)] + [b for path in CONFIGS for b in comments_of(path)]


def of_language(*languages):
    return [block for block in all_blocks() if block.language in languages]


def commands():
    """Blocks of one command each, or of several if one depends on another; without comments, each once."""
    found = {}
    for block in of_language(*SHELL):
        if block.text.startswith(tuple(NOT_COMMANDS)):
            continue
        lines = [without_comment(line) for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
        depend = any(re.match(r"cd |\w+=", line) for line in lines)
        for text in ["\n".join(lines)] if depend else lines:
            found.setdefault(text, replace(block, text=text))
    return list(found.values())


def without_comment(line):
    return re.sub(r"\s+#\s.*$", "", line.strip())


def is_run(block):
    return not any(part in block.text for part in NOT_RUN)


def is_of_results(block):
    return any(part in block.text for part in OF_RESULTS)


# --- a checkout to run them in -----------------------------------------------------------------------------------


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


class Checkout:
    """The files of the repository with small data, and programs that start no jobs."""

    def __init__(self, folder):
        self.home, self.programs, self.data = folder / "home", folder / "programs", folder / "data"
        self.folder, self.elsewhere = folder / "shared/coincide", folder / "scratch"
        for path in (self.home, self.programs, self.elsewhere, self.folder / ".venv/bin"):
            path.mkdir(parents=True)
        for path in REPO.iterdir():
            if path.name not in (".venv", ".git", "config", "results", "resources", ".snakemake"):
                (self.folder / path.name).symlink_to(path)
        self._write_programs()
        self._write_data()
        for path in (REPO / "config").iterdir():
            (self.folder / "config").mkdir(exist_ok=True)
            if path.suffix == ".yaml":
                text = path.read_text().replace("/data/", f"{self.data}/")
                # the same jobs for each replicate, of which the studies have up to five
                text = re.sub(r"^replicates: .*$", "replicates: [0, 1]", text, flags=re.MULTILINE)
                (self.folder / "config" / path.name).write_text(text)
            else:
                (self.folder / "config" / path.name).symlink_to(path)

    def _write_programs(self):
        real = Path(sys.executable).parent
        for path in real.iterdir():
            (self.folder / ".venv/bin" / path.name).symlink_to(path)
        for name, text in (("snakemake", SNAKEMAKE), ("python", PYTHON)):
            program = self.folder / ".venv/bin" / name
            program.unlink()
            write_program(program, text.format(**{name: shlex.quote(str(real / name))}))
        write_program(self.programs / "make", MAKE.format(make=shutil.which("make"), made="|".join(MADE)))
        for name in ("ready", "ready-dev"):
            (self.folder / ".venv" / name).touch()

    def _write_data(self):
        """The datasets of the recipes with as many records as they have clusters, and my.yaml with a small one."""
        for name in ("llava/images", "vision-flan/images_191task_1k", "mine/images/folder"):
            (self.data / name).mkdir(parents=True)
        text_only = [make_record(i, image=False, words=0) for i in range(10_000)]
        large = write_dataset(self.data, text_only)
        for name in ("llava/llava_v1_5_mix665k.json", "vision-flan/annotation_191-task_1k.json"):
            (self.data / name).symlink_to(large)
        for i in range(80):
            Image.new("RGB", (8, 8)).save(self.data / f"mine/images/folder/{i}.png")
        mine = write_dataset(self.data / "mine", [make_record(i) for i in range(80)])
        overlay = {
            "run": "mine",
            "dataset": {"annotations": str(mine), "images": str(self.data / "mine/images")},
            "pilot": {"holdout": 0.3, "epochs": 20},  # enough questions and steps with 80 records
        }
        for folder in (self.folder, self.elsewhere):
            (folder / "my.yaml").write_text(yaml.safe_dump(overlay))

    def run(self, block):
        """None, or the output of a block that fails."""
        text = block.text.replace("/shared/coincide", str(self.folder)).replace(
            "/scratch/me/coincide", str(self.elsewhere)
        )
        env = environment()
        # a user has not activated the environment
        path = [folder for folder in env["PATH"].split(os.pathsep) if not (Path(folder) / "snakemake").exists()]
        env |= {"PATH": os.pathsep.join([str(self.programs), *path]), "XDG_CONFIG_HOME": str(self.home)}
        return failure(["bash", "-euo", "pipefail", "-c", text], block, cwd=self.folder, env=env)


def failure(command, block, **options):
    """None, or the output of a command that fails."""
    result = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options
    )
    return f"{block.origin}: {block.text}\n{result.stdout[-3000:]}" if result.returncode else None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("documented"))


# --- the tests -----------------------------------------------------------------------------------------------------


def test_blocks_and_inline_commands_are_found():
    found = {block.text.split(" ")[0] for block in commands()}
    assert {".venv/bin/snakemake", ".venv/bin/python", "make", "/path/to/other/bin/pip"} <= found
    languages = {block.language for block in all_blocks()}
    assert languages <= {*SHELL, "python", "yaml", "json"}, "check blocks of a new language here"
    texts = [block.text for block in all_blocks()]
    for listed in NOT_COMMANDS:
        assert any(text.startswith(listed) for text in texts), f"{listed!r} is no longer in the documentation"
    for listed in (*NOT_RUN, *OF_RESULTS):
        assert any(listed in text for text in texts), f"{listed!r} is no longer in the documentation"


@pytest.mark.workflow
def test_every_command_runs_as_printed(checkout):
    to_run = [block for block in commands() if is_run(block) and not is_of_results(block)]
    # the pages that use the Slurm profile say that this installs it
    install = [block for block in to_run if "slurm-profile" in block.text]
    assert install
    failures = [checkout.run(block) for block in install]
    with ThreadPoolExecutor(2) as pool:
        failures += pool.map(checkout.run, [block for block in to_run if block not in install])
    assert not any(failures), "\n\n".join(filter(None, failures))


def test_programs_of_commands_that_are_not_run_exist():
    for block in commands():
        program = block.text.split(" ")[0]
        if not is_run(block) and program.startswith(".venv/bin/"):
            assert (Path(sys.executable).parent / Path(program).name).exists(), block


@pytest.mark.workflow
def test_commands_about_results_run_in_a_finished_run(finished, checkout):
    env = environment()
    (finished / "my.yaml").write_text((REPO / "tests/config/small.yaml").read_text())
    blocks = [block for block in commands() if is_of_results(block)]
    for block in blocks:
        text = block.text.replace(".venv/bin/", "").replace("<run>", "small")
        wrong = failure(["bash", "-euc", text], block, cwd=finished.folder, env=env)
        assert not wrong, wrong
    assert (finished / "snakemake-report.html").stat().st_size > 1e5
    (reading,) = [block for block in of_language("python") if "results/demo/" in block.text]
    text = reading.text.replace("results/demo/", "results/small/")
    wrong = failure([sys.executable, "-c", text], reading, cwd=finished.folder, env=env)
    assert not wrong, wrong


@pytest.mark.workflow
def test_a_workflow_that_includes_this_one_can_be_planned(checkout):
    (block,) = [block for block in of_language("python") if "snakefile:" in block.text]
    (checkout.elsewhere / "Snakefile").write_text(block.text.replace("/shared/coincide", str(checkout.folder)))
    command = [Path(sys.executable).parent / "snakemake", "-n", "--cores", "1"]
    wrong = failure(command, block, cwd=checkout.elsewhere, env=environment())
    assert not wrong, wrong


def test_python_examples_run(tmp_path):
    examples = [
        b for b in of_language("python") if not re.search(r"snakefile:|results/(demo|mine)/|^NEEDS", b.text, re.M)
    ]
    assert examples
    # the method of docs/methods.md (NEEDS) is run by tests/methods, what reads an exported coreset by tests/clients
    for block in examples:
        wrong = failure([sys.executable, "-c", block.text], block, cwd=tmp_path, env=environment())
        assert not wrong, wrong


@pytest.mark.parametrize("block", of_language("yaml"), ids=lambda block: block.origin)
def test_settings_in_the_documentation_are_valid(block):
    overrides = yaml.safe_load(block.text)
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(config, overrides)
    assert check_runs(config, files=False, overrides=overrides)


@pytest.mark.parametrize("block", of_language("json"), ids=lambda block: block.origin)
def test_records_in_the_documentation_are_read(block, tmp_path):
    records = read_records(write_dataset(tmp_path, json.loads(block.text)))
    assert records
    assert all(record["image"] and len(record["conversations"]) == 2 for record in records)
