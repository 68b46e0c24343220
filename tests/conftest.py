"""Small models, datasets and working folders for whole runs, shared by the tests."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# threads that wait do not spin: other tests and jobs of the workflow have the same cores; read when torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import psutil
import pytest
from PIL import Image

collect_ignore_glob = ["clients/load_*.py"]  # they run in the environments of the clients
REPO = Path(__file__).resolve().parent.parent
SHAPE = {
    "vocabulary": 400,
    "image_size": 32,
    "patch_size": 8,
    "vision_hidden": 16,
    "vision_layers": 2,
    "hidden": 32,
    "layers": 4,
    "heads": 2,
}


def make_record(i, *, image=True, turns=1, words=3):
    """A LLaVA record with `turns` questions and answers, `words` extra words in each question."""
    conversations = []
    for turn in range(turns):
        placeholder = "<image>\n" if image and turn == 0 else ""
        question = " ".join(["what", "is", f"thing{i}"] + ["really"] * words)
        conversations += [
            {"from": "human", "value": placeholder + question + "?"},
            {"from": "gpt", "value": f"answer {i} {turn}"},
        ]
    record = {"id": f"s{i}", "conversations": conversations}
    return {**record, "image": f"folder/{i}.png"} if image else record


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """(records, images folder): 24 records of mixed lengths, a third of them without an image."""
    folder = tmp_path_factory.mktemp("tiny-data") / "images"
    (folder / "folder").mkdir(parents=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        record = make_record(i, image=i % 3 > 0, turns=1 + i % 2, words=int(rng.integers(0, 12)))
        if "image" in record:
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / record["image"])
        records.append(record)
    return records, folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_data):
    """Folder of a small untrained LLaVA model with its processor."""
    from coincide.base.sections import Shape
    from coincide.demo.tiny_models import TEMPLATE_WITHOUT_SYSTEM, build_model

    folder = tmp_path_factory.mktemp("tiny-model") / "model"
    texts = [turn["value"] for record in tiny_data[0] for turn in record["conversations"]]
    build_model([TEMPLATE_WITHOUT_SYSTEM, *texts], shape=Shape(**SHAPE), seed=0, output=folder)
    return folder


class Workplace:
    """A working folder for Snakemake, with links to the files of the repository."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("Snakefile", "rules", "workflow_scripts", "config", "config.yaml", "docs", "envs", "profiles"):
            (folder / name).symlink_to(REPO / name)

    def command(self, *arguments, config=REPO / "tests/config/small.yaml", profile="profiles/local"):
        """Command line of Snakemake; targets come before options, since some options take several values."""
        snakemake = Path(sys.executable).parent / "snakemake"
        return [str(snakemake), *map(str, arguments), "--profile", profile, "--configfile", str(config)]

    def start(self, *arguments, log, **options):
        """Start Snakemake in a new session and return the process."""
        with open(self.folder / log, "w") as file:
            return subprocess.Popen(
                self.command(*arguments, **options),
                cwd=self.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(),
            )

    def run(self, *arguments, timeout=900, **options):
        """Run Snakemake and wait for its end: (exit code, output)."""
        process = subprocess.run(
            self.command(*arguments, **options),
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=environment(),
            check=False,
        )
        return process.returncode, process.stdout

    def kill_when(self, condition, name, *, group, **options):
        """Start a run, kill it with SIGKILL as soon as the condition holds, and wait until its jobs have ended.

        Args:
            condition: function without arguments.
            name: of this start, for its log.
            group: kill Snakemake and its jobs; otherwise only Snakemake, so that its jobs have to notice.
            options: of `command`.
        """
        process = self.start(log=f"{name}.out", **options)
        deadline = time.monotonic() + 900  # long, for a machine with other work
        while not condition():
            assert process.poll() is None, (self / f"{name}.out").read_text()
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"{name}: the condition was not met in time")
            time.sleep(0.02)
        jobs = psutil.Process(process.pid).children(recursive=True)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        psutil.wait_procs(jobs, timeout=20)
        assert not [p for p in jobs if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def __truediv__(self, path):
        return self.folder / path


def jobs_of(output):
    """Jobs that ran, or that a dry run lists: dict of rule -> count, without targets."""
    listed = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", output, flags=re.MULTILINE)
    jobs = {rule: listed.count(rule) for rule in listed if rule not in ("all", "select", "finetune", "evaluate")}
    ran = re.findall(r"^ +[\d:]+  (\w+): done in [\d:]+(?: \((\d+) jobs\))?$", output, flags=re.MULTILINE)
    return jobs | {rule: int(count or 1) for rule, count in ran}


def environment():
    """Environment of a run: without access to the hub, and with the Python of the tests first in PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def workplace(tmp_path):
    """A working folder without results."""
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A working folder with the results of an uninterrupted run of the small config; `.output` is what it printed."""
    workplace = Workplace(tmp_path_factory.mktemp("finished"))
    code, output = workplace.run()
    assert code == 0, output
    workplace.output = output
    return workplace


def copy_of(finished, folder):
    """A working folder with a copy of a finished run, in which modification times are kept."""
    shutil.copytree(finished.folder, folder, symlinks=True, dirs_exist_ok=True)
    copy = Workplace.__new__(Workplace)
    copy.folder = folder
    return copy


def write_dataset(folder, records):
    """Write records as LLaVA JSON and return the path."""
    path = Path(folder) / "data.json"
    path.write_text(json.dumps(records))
    return path
