"""What the jobs of each rule need: GPUs, nodes, CPUs, memory and time.

All of it follows from the config, which states the GPUs, processes and nodes of a stage once, and from the size of the
models. `Demand` is what one job asks of a cluster. On one machine, jobs share its cores, and a GPU is leased to one job
at a time (`coincide.workflow.gpu_lease`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coincide.base.sections import Config, Training
from coincide.models.sizes import UNKNOWN_PARAMETERS, count_parameters
from coincide.workflow.config import MODELS, conversion_of
from coincide.workflow.stages import Runs

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PROCESS_MEMORY = 6.0  # GiB of Python, torch and the CUDA libraries
LEAST_PROCESS_MEMORY = 0.8  # GiB of Python and torch alone
WORKER_MEMORY = 1.0  # GiB of a process that prepares samples
READ_AHEAD_MEMORY = 3.0  # GiB of encoded samples in extraction
SHORTEST = 60  # minutes
LONGEST = 7 * 24 * 60  # minutes
# Sustained operations per second, in the lower half of what an A100 reaches, so that time limits hold
GPU_SPEED = {"float32": 1e13, "float16": 6e13, "bfloat16": 6e13}
CPU_SPEED = 2e11
SAMPLE_TOKENS = 1000  # of a sample of LLaVA-1.5 with its image, rounded up
TIME_MARGIN = 1.5
MEMORY_MARGIN = 1.15  # a name such as 7b is rounded
SAMPLE_BYTES = 1500  # of a record of LLaVA's JSON
ASSUMED_SAMPLES = 700_000  # where the size of the dataset is not known
WHOLE_MACHINE = 64  # threads, limited by Snakemake to the cores that there are


@dataclass(frozen=True)
class Sizes:
    """What the demand of a job follows from besides the config.

    Attributes:
        reference, target, clip: parameters of the models.
        samples: rows of the dataset.
    """

    reference: float = UNKNOWN_PARAMETERS
    target: float = UNKNOWN_PARAMETERS
    clip: float = 4.3e8
    samples: float = ASSUMED_SAMPLES


@dataclass(frozen=True)
class Demand:
    """What one job needs on a cluster.

    Attributes:
        gpus: number of GPUs, over all nodes.
        nodes: number of nodes.
        cpus: per node.
        memory: GiB per node.
        minutes: time limit.
    """

    gpus: int = 0
    nodes: int = 1
    cpus: int = 1
    memory: float = 8.0
    minutes: float = SHORTEST


def demand(config: Config, rule: str, sizes: Sizes, *, fraction: float = 1.0) -> Demand:
    """What a job of a rule needs.

    Args:
        config: Config of the run.
        rule: name of a rule; rules that need little have the default Demand.
        sizes: of models and dataset.
        fraction: share of the dataset that the job trains on.
    """
    if rule not in _DEMANDS:
        return Demand()
    return _DEMANDS[rule](config, sizes, fraction)


def rules_with_demand() -> list[str]:
    """Rules that need more than the default Demand."""
    return list(_DEMANDS)


def training_memory(training: Training, parameters: float, *, process_memory: float = PROCESS_MEMORY) -> float:
    """GiB of host memory that the processes of a training need on one node.

    Args:
        training: Training section.
        parameters: of the model.
        process_memory: GiB of a process without the model.
    """
    # weights that are trained are float32; the base of adapters has the dtype of the computation
    loaded = parameters * BYTES[training.dtype if training.lora else "float32"] / GIB
    per_process = process_memory + loaded + training.loader_workers * WORKER_MEMORY
    return training.processes * per_process


def training_gpu_memory(training: Training, parameters: float, trained: float, activations: float = 0.0) -> float:
    """GiB of GPU memory that one process of a training needs, at least.

    Args:
        training: Training section.
        parameters: of the model.
        trained: parameters that are trained.
        activations: GiB that a batch needs.
    """
    # as for `training_memory`; adapters are not among the parameters
    weights = BYTES[training.dtype] * parameters + 4.0 * trained if training.lora else 4.0 * parameters
    gradients_and_adam = 12.0 * trained
    shares = training.processes * training.nodes if training.sharding == "fsdp" else 1
    return (weights + gradients_and_adam) / shares / GIB + activations


def _gpus(device: str, count: int = 1) -> int:
    return 0 if device == "cpu" else count


def _minutes(operations, gpus, dtype, *, seconds=0.0):
    speed = gpus * GPU_SPEED[dtype] if gpus else CPU_SPEED
    minutes = 30 + TIME_MARGIN * (operations / speed + seconds) / 60
    return min(LONGEST, max(SHORTEST, minutes))


def _activations(config, sizes, fraction):
    reference = config.reference_model
    gpus = _gpus(reference.device)
    samples = sizes.samples / config.dataset.shards
    operations = samples * SAMPLE_TOKENS * 2 * sizes.reference
    weights = sizes.reference * BYTES[reference.dtype] / GIB
    return Demand(
        gpus=gpus,
        cpus=8,
        memory=MEMORY_MARGIN * (PROCESS_MEMORY + weights + READ_AHEAD_MEMORY + 7 * WORKER_MEMORY),
        minutes=_minutes(operations, gpus, reference.dtype, seconds=samples * 0.1),
    )


def _clip_scores(config, sizes, fraction):
    clip = config.clip_model
    gpus = _gpus(clip.device)
    samples = sizes.samples / config.dataset.shards
    return Demand(
        gpus=gpus,
        cpus=8,
        memory=PROCESS_MEMORY + sizes.clip * BYTES[clip.dtype] / GIB + 8 * WORKER_MEMORY,
        minutes=_minutes(samples * SAMPLE_TOKENS * 2 * sizes.clip, gpus, clip.dtype, seconds=samples * 0.1),
    )


def training_operations(training: Training) -> int:
    """Operations per parameter and token of a training step.

    2 for the forward pass, 2 for the gradients of activations, 2 for the gradients of weights (without LoRA), and 2 for
    the second forward pass of gradient checkpointing.
    """
    return 2 + 2 + 2 * (training.lora is None) + 2 * training.gradient_checkpointing


def _finetune_model(config, sizes, fraction):
    training = config.target_model.training
    gpus = _gpus(training.device, training.processes * training.nodes)
    tokens = sizes.samples * fraction * training.epochs * SAMPLE_TOKENS
    return Demand(
        gpus=gpus,
        nodes=training.nodes,
        cpus=training.processes * max(4, 1 + training.loader_workers),
        memory=MEMORY_MARGIN * training_memory(training, sizes.target),
        minutes=_minutes(training_operations(training) * sizes.target * tokens, gpus, training.dtype),
    )


def _difficulty(config, sizes, fraction):
    return _finetune_model(config, sizes, 1.0)


def _evaluate_model(config, sizes, fraction):
    evaluation = config.evaluation
    # An adapter is merged in host memory, so two copies of the weights exist for a while.
    copies = 2 * sizes.target * BYTES[evaluation.dtype] / GIB
    return Demand(
        gpus=_gpus(evaluation.device),
        cpus=8,
        memory=MEMORY_MARGIN * (PROCESS_MEMORY + copies + 8 * WORKER_MEMORY),
        minutes=min(LONGEST, 480 * max(1.0, sizes.target / 7e9)),
    )


def _check_transfer(config, sizes, fraction):
    check = config.transfer_check
    gpus = _gpus(check.device)
    passes = check.clusters * check.samples * (3 * check.epochs + 2 * check.clusters)
    return Demand(
        gpus=gpus,
        cpus=8,
        memory=PROCESS_MEMORY + 2 * sizes.reference * BYTES["float32"] / GIB,
        minutes=_minutes(passes * SAMPLE_TOKENS * 2 * sizes.reference, gpus, "float32"),
    )


def _estimate_cost(config, sizes, fraction):
    one_shard = _activations(config, sizes, fraction)
    return Demand(gpus=one_shard.gpus, cpus=8, memory=one_shard.memory, minutes=SHORTEST)


def _clusters(config, sizes, fraction):
    clustering = config.clustering
    gpus = clustering.gpus if clustering.backend in ("torch", "cuml") else 0
    return Demand(gpus=gpus, cpus=16, memory=96.0, minutes=480)


def _of_clusters(config, sizes, fraction):
    return Demand(gpus=int(config.selection.device == "cuda"), cpus=8, memory=16.0, minutes=240)


_DEMANDS: dict[str, Callable[[Config, Sizes, float], Demand]] = {
    "tiny_model": lambda config, sizes, fraction: Demand(cpus=8),
    # a PyTorch file of old checkpoints, up to 10 GB, and the file that is written
    "converted_model": lambda config, sizes, fraction: Demand(cpus=2, memory=24.0, minutes=120),
    "preflight": lambda config, sizes, fraction: Demand(cpus=2),
    "manifest": lambda config, sizes, fraction: Demand(cpus=8, memory=32.0, minutes=120),
    "image_hashes": lambda config, sizes, fraction: Demand(cpus=8, memory=16.0, minutes=240),
    "leaks": lambda config, sizes, fraction: Demand(cpus=2, memory=32.0, minutes=480),
    "duplicates": lambda config, sizes, fraction: Demand(cpus=2, memory=32.0, minutes=240),
    "activations": _activations,
    "clip_scores": _clip_scores,
    "clusters": _clusters,
    "transferability": _of_clusters,
    "density": _of_clusters,
    "picks": _of_clusters,
    "difficulty": _difficulty,
    "method_coreset": lambda config, sizes, fraction: Demand(cpus=16, memory=96.0, minutes=240),
    "coreset_json": lambda config, sizes, fraction: Demand(memory=32.0),
    "finetune_model": _finetune_model,
    "evaluate_model": _evaluate_model,
    "check_transfer": _check_transfer,
    "compare_coresets": lambda config, sizes, fraction: Demand(memory=16.0),
    "browser": lambda config, sizes, fraction: Demand(cpus=8, memory=16.0, minutes=240),
    "estimate_cost": _estimate_cost,
}
# "auto" is the GPU of this machine, but no reason to ask a cluster for one
_AUTO_LOCALLY: dict[str, Callable[[Config], bool]] = {
    "clusters": lambda config: config.clustering.backend == "auto",
    "transferability": lambda config: config.selection.device == "auto",
    "density": lambda config: config.selection.device == "auto",
    "picks": lambda config: config.selection.device == "auto",
    "tiny_model": lambda config: True,
}


RESOURCES: dict[str, Callable[[Demand], Any]] = {
    "gpu": lambda need: need.gpus,
    "nodes": lambda need: need.nodes if need.gpus > 1 or need.nodes > 1 else None,
    # one task per node, which starts a process per GPU
    "tasks": lambda need: need.nodes if need.nodes > 1 else None,
    "tasks_per_gpu": lambda need: 0 if need.nodes > 1 else None,
    "mpi": lambda need: "srun" if need.nodes > 1 else None,
    "mem_mb": lambda need: round(1024 * need.memory),
    "runtime": lambda need: round(need.minutes),
}
MORE_PER_ATTEMPT = ("mem_mb", "runtime")


class JobResources:
    """Threads and resources of the rules, as Snakemake takes them.

    Args:
        runs: the runs of the config.
        local: whether jobs run on this machine; otherwise on a cluster.
        cores: of this machine; None: not known.
        gpus: number of GPUs of this machine.
    """

    def __init__(self, runs: Runs, *, local: bool, cores: int | None = None, gpus: int = 0):
        self.runs, self.local, self.cores, self.gpus = runs, local, cores or 2, gpus
        self._sizes: dict[str, Sizes] = {}

    def threads(self, rule: str, wildcards: Any) -> int:
        """Threads of a job."""
        return self._local_threads(rule, wildcards) if self.local else self._demand(rule, wildcards).cpus

    def resource(self, rule: str, name: str, wildcards: Any, attempt: int) -> int | str | None:
        """A resource of a job, one of RESOURCES; None: not set. Each retry gets more memory and time."""
        need = self._demand(rule, wildcards)
        amount = RESOURCES[name](need)
        return amount * attempt if name in MORE_PER_ATTEMPT else amount

    def _demand(self, rule, wildcards):
        run = wildcards.get("run", next(iter(self.runs)))
        config = self.runs.configs[run]
        need = demand(config, rule, self.sizes(run), fraction=float(wildcards.get("fraction", 1)))
        if self.local and self.gpus and not need.gpus and rule in _AUTO_LOCALLY and _AUTO_LOCALLY[rule](config):
            return Demand(gpus=1, cpus=need.cpus, memory=need.memory, minutes=need.minutes)
        return need

    def _local_threads(self, rule, wildcards):
        """Half of the cores: two such jobs side by side are faster than one after the other.

        With several GPUs, as many jobs as GPUs are side by side. All cores for a job that has the machine to itself;
        not with several runs, since it would wait until every other job is done.
        """
        if rule == "check_transfer" or (rule == "clusters" and list(self.runs) == [wildcards.get("run")]):
            return WHOLE_MACHINE
        gpus = self._demand(rule, wildcards).gpus
        side_by_side = max(2, self.gpus // gpus) if gpus else 2
        return max(1, self.cores // side_by_side)

    def sizes(self, run: str) -> Sizes:
        """Sizes of the models and the dataset of a run, from files at hand; read once."""
        if run not in self._sizes:
            self._sizes[run] = read_sizes(self.runs.configs[run])
        return self._sizes[run]


def read_sizes(config: Config) -> Sizes:
    """Sizes of the models and the dataset of a config, from headers and file sizes; nothing large is read."""
    models = (config.reference_model, config.target_model, config.clip_model)
    reference, target, clip = (_parameters(model.name, model.revision, config) for model in models)
    return Sizes(reference, target, clip, _samples(config))


def _parameters(name, revision, config):
    if not Path(name).is_dir() and (conversion := conversion_of(name, config)):
        return count_parameters(conversion.decoder.name, conversion.decoder.revision)
    if name.startswith(f"{MODELS}/") and not Path(name).is_dir():
        return 1e7  # a tiny model that is not built yet
    return count_parameters(name, revision)


def _samples(config):
    """Rough number of samples, from the size of JSON files; ASSUMED_SAMPLES for other formats."""
    annotations = config.dataset.annotations
    paths = [annotations] if isinstance(annotations, str) else annotations
    if annotations == "resources/mini-mix/train.json":
        return config.mini_mix.samples
    if not all(path.endswith((".json", ".jsonl")) and Path(path).is_file() for path in paths):
        return ASSUMED_SAMPLES
    return sum(Path(path).stat().st_size for path in paths) / SAMPLE_BYTES
