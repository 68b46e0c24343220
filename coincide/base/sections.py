"""The sections of the config, as typed models that the stages take whole.

Every field says whose results it changes: `stages=` names rules, and a section's `STAGES` holds for the fields
that name none. A field marked `operational=True` changes no result (device, batch size, workers), `path=True` marks
a file or folder that a rule declares as an input, and `expanded=True` a list that the rules expand into jobs (methods,
fractions, seeds). What a stage depends on is derived from these marks (`coincide.workflow.stages`) and written down
nowhere else.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from coincide.base.files import common_folder


def _read_exponent(value: Any) -> Any:
    """YAML reads a number without a point, such as 1e-3, as text."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _explained(message: str) -> WrapValidator:
    """One message for a value that fits no alternative of a union, in place of one per alternative."""

    def validate(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(message) from None

    return WrapValidator(validate)


EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
FROM_YAML = BeforeValidator(_read_exponent)
Count = Annotated[StrictInt, Field(ge=1)]
Size = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, strict=True), FROM_YAML]
Share = Annotated[float, Field(ge=0, le=1, strict=True), FROM_YAML]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True), FROM_YAML]
Name = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
# A count, or a share with a decimal point
Least = Annotated[
    Count | Fraction,
    _explained("must be a count of at least 1, or a share above 0 and at most 1.0 with a decimal point"),
]
Most = Annotated[
    Size | Fraction,
    _explained("must be a count of at least 0, or a share above 0 and at most 1.0 with a decimal point"),
]
SampleIds = Annotated[
    list[StrictStr] | StrictStr,
    _explained("must be a list of sample ids, each in quotes, or the path of a file of them"),
]
Dtype = Literal["float32", "float16", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
ExtraMetric = Literal["loss_no_image", "question_losses", "vision_features"]
# tasks of lmms-eval whose answers or scores come from another model
JUDGED_TASKS = (
    "hallusion_bench",
    "llava_bench",
    "llava_in_the_wild",
    "llava_wilder",
    "mathverse",
    "mathvista",
    "mmbench",
    "mmvet",
)
CONSTRAINED = ("budget", "picks", "coincide_coreset", "method_coreset", "summary")  # rules that constraints change
HOLDOUT = "holdout"  # the group of tasks that asks the held-out samples
CHAT_TEMPLATE = (  # description of a field of several sections
    "chat template (Jinja) in place of the checkpoint's; null: the checkpoint's, or its family's if it ships none"
)


def setting(
    default: Any = ...,
    description: str | None = None,
    *,
    stages: tuple[str, ...] = (),
    operational: bool = False,
    path: bool = False,
    expanded: bool = False,
    **constraints: Any,
) -> Any:
    """A field of a section: pydantic's Field with the mark that says whose results the field changes.

    Args:
        default: value where the config has none; ... for a field that must be given.
        description: for the schema and config/README.md.
        stages: rules whose results the field changes; none: those of the section.
        operational: the field changes no result.
        path: the field names a file or folder that a rule has among its inputs.
        expanded: rules expand the field into jobs, so that each job depends on its own entry only.
        constraints: further arguments of pydantic's Field.
    """
    marks = {"operational": operational, "path": path, "expanded": expanded, "stages": list(stages)}
    mark: Any = {name: value for name, value in marks.items() if value}
    return Field(default, description=description, json_schema_extra=mark or None, **constraints)


class Section(BaseModel):
    """A section of the config. Unknown keys are errors, so that a misspelt key is not silently a default."""

    model_config = ConfigDict(extra="forbid")
    STAGES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def stages_of(cls, name: str) -> tuple[str, ...]:
        """The stages whose results a field changes; none for an operational, path or expanded field."""
        mark = cls.mark(name)
        return tuple(mark.get("stages", () if mark else cls.STAGES))

    @classmethod
    def paths(cls) -> list[str]:
        """Fields that name files or folders of the user's; the section's STAGES read them."""
        return [name for name in cls.model_fields if cls.mark(name).get("path")]

    @classmethod
    def mark(cls, name: str) -> dict[str, Any]:
        """The mark that `setting` put on a field."""
        mark = cls.model_fields[name].json_schema_extra
        return mark if isinstance(mark, dict) else {}

    def results_depend_on(self, stage: str) -> dict[str, Any]:
        """Values of the fields that change the results of a stage, as plain values, nested sections included."""
        fields = [name for name in type(self).model_fields if stage in self.stages_of(name)]
        return {name: _plain(getattr(self, name), stage) for name in fields}


def _plain(value, stage):
    if isinstance(value, Section):
        return value.results_depend_on(stage)
    if isinstance(value, list):
        return [_plain(item, stage) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, stage) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is loaded from: a hub name or a folder."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None

    @classmethod
    def of(cls, model: "Checkpoint | str | Path") -> "Checkpoint":
        """The checkpoint itself, or that of a hub name or folder."""
        return model if isinstance(model, cls) else cls(str(model))


class Dataset(Section):
    """The dataset that samples are selected from."""

    STAGES = ("manifest",)

    annotations: StrictStr | Annotated[list[StrictStr], Field(min_length=1)] = setting(
        description=".json or .jsonl (LLaVA, ShareGPT, OpenAI, Alpaca); .parquet or .tar (WebDataset), or a folder of "
        "them; a glob, or a list of files, folders and globs",
        path=True,
    )
    images: StrictStr | None = setting(
        None, "folder that image names are relative to; null: the folder of annotations", path=True
    )
    extends: StrictStr | None = setting(
        None,
        "folder of a finished run, results/<run>, whose samples are among these: their activations are reused; null: "
        "none",
        path=True,
    )
    follow_links: StrictBool = setting(
        True,
        "follow links in the images folder that lead out of it; false: reject the samples of such images",
        stages=("manifest", "holdout_questions", "image_hashes", "leaks", "browser"),
    )
    shards: Count = setting(1, "number of extraction jobs", stages=("manifest", "screen", "shards"))
    sample: Count | None = setting(
        None,
        "use only this many samples, in which every source keeps its share; the others are rejected as not sampled; "
        "null: all",
    )
    max_rejected: Share = setting(
        0.01, "the run stops when more than this share of the samples is rejected", operational=True
    )
    duplicate_ids: Literal["reject", "digest"] = setting(
        "reject", "reject later rows with an id that was seen before, or keep them under a digest of their content"
    )
    decode_images: StrictBool = setting(
        True, "decode every image before any model runs, which finds truncated files; false: only check that they exist"
    )
    leaks: Literal["report", "drop", "ignore"] = setting(
        "report",
        "samples that show the evaluation's images or ask its questions (docs/leaks.md): report them, drop them, or do "
        "not look for them",
        stages=("screen", "summary"),
    )
    near_duplicates: Literal["report", "drop", "ignore"] = setting(
        "report",
        "samples that repeat the pictures and the text of an earlier one: report them, drop them, or do not look for "
        "them",
        stages=("screen", "summary"),
    )

    @model_validator(mode="after")
    def _images_beside_annotations(self):
        if self.images is None:
            self.images = common_folder(self.annotations)
        return self

    @property
    def is_screened(self) -> bool:
        """Whether usable samples are dropped from the dataset."""
        return "drop" in (self.leaks, self.near_duplicates)

    @property
    def image_folders(self) -> list[str]:
        """The folder of image files, and the folder of annotations that may have images inside, if it is another."""
        paths = [self.annotations] if isinstance(self.annotations, str) else self.annotations
        folders = [self.images or ""]
        if not all(path.endswith((".json", ".jsonl")) for path in paths):
            folders.append(common_folder(self.annotations))
        return list(dict.fromkeys(folders))


class MiniMix(Section):
    """Size of the default dataset, which the workflow writes itself."""

    STAGES = ("mini_mix",)

    samples: Count = setting(15000, "samples to select from")
    pretrain_samples: Count = setting(
        6000, "samples reserved for training the tiny models; neither selected nor evaluated"
    )
    test_samples: Count = setting(100, "questions per evaluation task")
    validation_samples: Count = setting(100, "questions per validation task, on which settings may be tuned")
    seed: Size = setting(0, "seed of the generated samples")
    weights: dict[StrictStr, Count] = setting(
        {}, "sizes of sources, relative to the others and in place of those in docs/demo.md, such as {counting: 860}"
    )


class EvenMix(Section):
    """Size of the second dataset that the workflow writes itself: many small tasks of equal size."""

    STAGES = ("even_mix",)

    samples: Count = setting(9540, "samples to select from")
    test_samples: Count = setting(12, "questions per evaluation task")
    validation_samples: Count = setting(12, "questions per validation task, on which settings may be tuned")
    seed: Size = setting(0, "seed of the generated samples")


class Lora(Section):
    """Low-rank adapters (peft)."""

    STAGES = ("difficulty", "finetune_model", "tiny_model")

    r: Count = setting(128, "rank of the adapters")
    alpha: Count = setting(256, "scale of the adapters")
    dropout: Share = setting(0.05, "dropout on the adapters' input")
    target_modules: StrictStr | list[StrictStr] | None = setting(
        None,
        "layers that get adapters: a pattern or a list, as in peft; null: the linear layers of the model's decoder",
    )
    modules_to_save: list[StrictStr] | None = setting(
        None, "modules that are trained in full alongside the adapters; null: the model's projector; []: none"
    )


class Training(Section):
    """How a model is trained."""

    STAGES = ("difficulty", "finetune_model", "tiny_model")

    epochs: Positive = setting(1.0, "passes over the data")
    batch_size: Count = setting(16, "samples per step, over all processes")
    gradient_accumulation: Count = setting(1, "batches per optimizer step")
    learning_rate: Positive = setting(description="peak learning rate")
    projector_learning_rate: Positive | None = setting(
        None, "learning rate of the projector between vision tower and decoder; null: learning_rate"
    )
    max_tokens: Count | None = setting(
        None, "longer samples are truncated to this length, but never within their image tokens; null: no limit"
    )
    warmup: Share = setting(0.03, "share of the steps with a rising learning rate")
    weight_decay: Annotated[float, Field(ge=0, strict=True), FROM_YAML] = setting(0.0, "weight decay of AdamW")
    adam_beta2: Annotated[float, Field(gt=0, lt=1, strict=True), FROM_YAML] = setting(0.999, "beta2 of AdamW")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = setting("cosine", "learning rate schedule")
    dtype: Dtype = setting(
        "float32",
        "dtype of the computation, and of the base model under adapters; weights that are trained are kept in float32",
    )
    device: Device = setting("auto", "auto: the GPU if there is one", operational=True)
    save_every: Count = setting(200, "steps between checkpoints; a killed job resumes from the last", operational=True)
    gradient_checkpointing: StrictBool = setting(False, "recompute activations in the backward pass to save memory")
    loader_workers: Size = setting(
        0, "processes that prepare batches; 0: the training process itself", operational=True
    )
    lora: Lora | None = setting(None, "low-rank adapters; null trains all weights")
    freeze: list[Literal["vision_tower", "projector", "language_model"]] = setting(
        [], "parts of the model that are not trained, without lora; LLaVA's finetuning freezes the vision tower"
    )
    processes: Count = setting(1, "processes per node, one per GPU; jobs ask for as many GPUs", operational=True)
    nodes: Count = setting(1, "nodes of the Slurm job; it asks for processes × nodes GPUs", operational=True)
    sharding: Literal["none", "fsdp"] = setting("none", "none: a full model on every GPU; fsdp: sharded over the GPUs")

    @model_validator(mode="after")
    def _batches_divide(self):
        world_size = self.processes * self.nodes
        if self.batch_size % world_size:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by {world_size} processes")
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self):
        if self.sharding == "fsdp" and self.device == "cpu":
            raise ValueError(
                "sharding: fsdp requires GPUs, since accelerate shards no model on a CPU, but device is cpu: set "
                "sharding to none, or device to auto"
            )
        if self.sharding == "fsdp" and self.processes * self.nodes == 1:
            raise ValueError(
                "sharding: fsdp distributes a model over processes, but there is one: set processes to the number of "
                "GPUs of a node, or sharding to none"
            )
        return self

    @model_validator(mode="after")
    def _freezes_some_weights(self):
        if self.freeze and self.lora:
            raise ValueError(
                "freeze applies to training without lora; with lora only the adapters and lora.modules_to_save are "
                "trained: set freeze to []"
            )
        if len(set(self.freeze)) == 3:
            raise ValueError("freeze names every part of the model: nothing would be trained")
        if self.projector_learning_rate is not None and "projector" in self.freeze:
            raise ValueError("projector_learning_rate is set, but freeze names the projector: set one of them to null")
        return self


class Shape(Section):
    """Size of a tiny model that the workflow builds itself."""

    STAGES = ("tiny_model",)

    vocabulary: Count = setting(1000, "tokens")
    image_size: Count = setting(64, "pixels per side")
    patch_size: Count = setting(16, "pixels per side of a patch")
    vision_hidden: Count = setting(description="hidden size of the vision tower")
    vision_layers: Count = setting(description="layers of the vision tower")
    hidden: Count = setting(description="hidden size of the decoder")
    layers: Count = setting(description="layers of the decoder")
    heads: Count = setting(description="attention heads of both")
    vision_features: Literal["default", "full"] = setting(
        "default", "default: the decoder gets the image's patches; full: also the class token"
    )

    @model_validator(mode="after")
    def _divides(self):
        for key, divisor in (
            ("image_size", self.patch_size),
            ("hidden", self.heads),
            ("vision_hidden", self.heads),
        ):
            if getattr(self, key) % divisor:
                raise ValueError(f"{key} must be a multiple of {divisor}")
        return self


class TinyModel(Section):
    """A tiny model: one that the package brings, or one that the workflow builds and trains on the split pretrain."""

    STAGES = ("tiny_model",)

    pretrained: Literal["reference", "target"] | None = setting(
        None, "a model of the package; null: build one with shape and training"
    )
    shape: Shape | None = setting(None, "size of a model that is built")
    training: Training | None = setting(None, "training of a model that is built")
    seed: Size = setting(0, "seed of the initial weights and of the training order")

    @model_validator(mode="after")
    def _is_read_or_built(self):
        if self.pretrained and (self.shape or self.training):
            raise ValueError(
                "pretrained and shape or training exclude each other: set pretrained to null, or these two"
            )
        if not self.pretrained and not (self.shape and self.training):
            raise ValueError("set shape and training, with which the model is built, or pretrained")
        return self


class ModelSource(Section):
    """Where a part of a converted model is read from."""

    STAGES = ("converted_model",)

    name: StrictStr = setting(description="hub name, or a folder")
    revision: StrictStr | None = setting(None, "branch, tag or commit on the hub")


class ConvertedModel(Section):
    """A model that the workflow converts into transformers' format.

    It is either a checkpoint in LLaVA's original format, or a LLaVA before instruction tuning, assembled from a
    language model, a vision tower and LLaVA's projector file.
    """

    STAGES = ("converted_model",)

    checkpoint: ModelSource | None = setting(None, "a checkpoint in LLaVA's original format, such as TinyLLaVA-2.0B")
    language_model: ModelSource | None = setting(None, "the language model of an assembled model")
    projector: ModelSource | None = setting(
        None, "where LLaVA's mm_projector.bin is, for an assembled model; only tensors are read from it"
    )
    vision_tower: ModelSource | None = setting(
        None,
        "a CLIP or SigLIP model; null: the one that the config.json of checkpoint or projector names (mm_vision_tower)",
    )
    image_aspect_ratio: Literal["pad", "square"] | None = setting(
        None,
        "pad: images are padded to a square with the mean colour, as LLaVA-1.5 was trained; square: they are not; "
        "null: as the checkpoint's config.json says; pad for an assembled model",
    )

    @model_validator(mode="after")
    def _has_one_kind_of_source(self):
        assembled = (self.language_model, self.projector)
        if self.checkpoint and any(assembled):
            raise ValueError("set checkpoint, or language_model and projector, but not both")
        if not self.checkpoint and not all(assembled):
            raise ValueError("set checkpoint, or both language_model and projector")
        return self

    @property
    def decoder(self) -> ModelSource:
        """Where the decoder and its tokenizer are."""
        source = self.checkpoint or self.language_model
        assert source is not None  # _has_one_kind_of_source
        return source

    @property
    def sources(self) -> dict[str, ModelSource]:
        """The sources that are set, by their keys."""
        keys = ("checkpoint", "language_model", "projector", "vision_tower")
        return {key: source for key in keys if (source := getattr(self, key))}


class ReferenceModel(Section):
    """The small model whose activations are read."""

    STAGES = ("activations",)

    name: StrictStr = setting(description="hub name, or a folder", stages=("activations", "check_transfer"))
    revision: StrictStr | None = setting(
        None, "branch, tag or commit on the hub", stages=("activations", "check_transfer")
    )
    layers: list[StrictInt | Annotated[float, Field(gt=0, lt=1, strict=True)]] = setting(
        min_length=1,
        description="zero-based decoder layers, or fractions of depth: 0.5 is the layer that ends half-way",
    )
    dtype: Dtype = setting("float32", "dtype of weights and computation")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = setting(
        None,
        "attention implementation of transformers; null: its default, sdpa. With flash attention, samples of one image "
        "do not share its tokens",
    )
    device: Device = setting("auto", "auto: the GPU if there is one", operational=True)
    batch_tokens: Count | None = setting(
        None,
        "tokens per batch, padding included; null: 2,048 on a CPU, 16,384 on a GPU. Halved when memory runs out",
        operational=True,
    )
    max_tokens: Count = setting(2048, "longer samples are rejected")
    compiled: StrictBool = setting(False, "torch.compile the layers whose outputs are not read", operational=True)
    trust_remote_code: StrictBool = setting(
        False, "run Python code that the checkpoint ships", stages=("activations", "check_transfer")
    )
    chat_template: StrictStr | None = setting(None, CHAT_TEMPLATE, stages=("activations", "check_transfer"))
    sample_metrics: StrictBool = setting(
        False,
        "also compute the per-sample metrics that some methods need (loss, EL2N, margin, embeddings); the whole model "
        "runs instead of stopping after the last layer that is read",
    )
    extra_metrics: list[ExtraMetric] = setting(
        [],
        "further sample metrics, each of which some methods need. loss_no_image: the loss of the answers without the "
        "images, and an embedding of the question; one more pass over the text. question_losses: the loss of the first "
        "question, with and without its answer; two more passes. vision_features: the mean of the visual tokens after "
        "the first decoder layer; no further pass. They need sample_metrics: true",
    )

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the model is loaded from."""
        return Checkpoint(self.name, self.revision, self.trust_remote_code, self.chat_template)


class ClipModel(Section):
    """The CLIP model that clip_score and self_filter need; only loaded when one of them is selected."""

    STAGES = ("clip_scores",)

    name: StrictStr = setting("openai/clip-vit-large-patch14-336", "hub name, or a folder")
    revision: StrictStr | None = setting(None, "branch, tag or commit on the hub")
    dtype: Dtype = setting("float32", "dtype of weights and computation")
    device: Device = setting("auto", "auto: the GPU if there is one", operational=True)
    batch_size: Count = setting(64, "samples per batch", operational=True)


class Clustering(Section):
    """Spherical k-means."""

    STAGES = ("clusters",)

    k: Count | None = setting(None, "number of clusters; null: one per 66 samples, as in the paper")
    centroids: StrictStr | None = setting(
        None,
        "centroids.parquet of a finished run: samples are assigned to these centroids, and the other settings of the "
        "section have no effect; null: cluster the samples",
        path=True,
    )
    poor_fit: Annotated[float, Field(gt=0, lt=1, strict=True), FROM_YAML] = setting(
        0.01,
        "with centroids, a new sample fits badly if it is farther from its centroid, relative to the width of the "
        "cluster, than all but this share of the samples of the finished run",
        stages=("summary",),
    )
    iterations: Count = setting(50, "maximum number of Lloyd iterations")
    init: Literal["random", "k-means++"] = setting(
        "random",
        "first centroids: random rows, as in the published code, or k-means++, which favours sparse regions",
    )
    seed: Size = setting(0, "seed of the first centroids", stages=("clusters", "picks"))
    backend: Literal["auto", "memory", "stream", "faiss", "torch", "cuml"] = setting(
        "auto", "auto: cuml or torch on GPUs; on a CPU memory, or stream when the rows exceed 8 GiB"
    )
    gpus: Count = setting(1, "GPUs of the job with backend torch or cuml", operational=True)
    fit_rows: Count | None = setting(
        None, "fit on a random sample of this many rows, then assign all; null: fit on all"
    )


class TextOnly(Section):
    """How many samples without an image the coresets have; a share or a count, as for a source."""

    STAGES = CONSTRAINED

    at_least: Least | None = setting(None, "fewest samples without an image; null: no limit")
    at_most: Most | None = setting(None, "most samples without an image; null: no limit")


class Constraints(Section):
    """What every coreset has to satisfy, whatever the method."""

    STAGES = CONSTRAINED

    at_least: dict[StrictStr, Least] = setting(
        {},
        "source -> fewest samples of it in a coreset: a share of the coreset with a decimal point (0.05; 1.0 is all of "
        "it), or a count without (500)",
    )
    at_most: dict[StrictStr, Most] = setting(
        {}, "source -> most samples of it in a coreset: a share or a count; 0: none"
    )
    text_only: TextOnly = setting(TextOnly(), stages=CONSTRAINED)
    keep: SampleIds = setting(
        [],
        "ids of samples that are in every coreset: a list, or a file of them (.txt: one per line; .json: a list of ids "
        "or of records; .parquet: column sample_id)",
    )
    exclude: SampleIds = setting(
        [],
        "ids of samples that are in no coreset, nor in the full data: a list or a file",
        stages=(*CONSTRAINED, "full_coreset"),
    )

    @property
    def has_bounds(self) -> bool:
        """Whether sources or text-only samples have a least or a most number."""
        return bool(self.at_least or self.at_most or self.text_only != TextOnly())

    @property
    def is_set(self) -> bool:
        """Whether there is any constraint."""
        return self.has_bounds or bool(self.keep or self.exclude)


class Selection(Section):
    """Which samples are kept."""

    fractions: list[Fraction] = setting(min_length=1, description="shares of the dataset to keep", expanded=True)
    methods: list[StrictStr] = setting(
        ["coincide", "random"],
        "coincide, or a baseline of coincide/methods (docs/methods.md)",
        min_length=1,
        expanded=True,
    )
    method_settings: dict[StrictStr, dict[str, Any]] = setting(
        {}, "settings per baseline, such as el2n: {keep: top}", expanded=True
    )
    budget: Literal["published", "premise", "even", "size"] = setting(
        "published",
        "budgets of the clusters: published (softmax of transferability ÷ density), premise (the same, weighed by what "
        "transfer_check measures; even where it measures nothing), even (the same for every cluster), or size (in "
        "proportion to the members)",
        stages=("shares",),
    )
    temperature: Positive = setting(
        0.1, "τ of the softmax over clusters, for the budgets published and premise", stages=("shares",)
    )
    gamma: Positive = setting(1.0, "width of the Gaussian kernel", stages=("density", "picks"))
    weigh_density: StrictBool = setting(
        True, "false: shares by transferability alone, for ablations", stages=("shares",)
    )
    within: Literal["mmd", "random"] = setting(
        "mmd", "how members of a cluster are picked; random for ablations", stages=("picks",)
    )
    cluster_groups: Count = setting(
        1, "jobs among which density and picks are divided; the results are the same", stages=("density", "picks")
    )
    blocks: Literal["text", "all"] = setting(
        "text",
        "blocks of the centroids that transferability compares; text: as in the published code",
        stages=("transferability", "write_report", "check_transfer"),
    )
    exclude_above: Annotated[float, Field(ge=-1, le=1, strict=True), FROM_YAML] = setting(
        0.9, "clusters with a cosine above this are near-copies and left out of the mean", stages=("transferability",)
    )
    device: Device = setting("auto", "device of transferability, density and picks", operational=True)
    seed: Size = setting(0, "seed of the methods that draw at random", stages=("difficulty", "method_coreset"))
    fraction_of: Literal["all", "new"] = setting(
        "all",
        "what the fractions are of, where the dataset extends a finished run: all samples, or those that this run does "
        "not have; with new, only these are selected, in addition to those of keep_earlier (docs/growth.md)",
        stages=CONSTRAINED,
    )
    keep_earlier: StrictBool = setting(
        False,
        "the coresets contain those of the run that the dataset extends, of the same method and fraction",
        stages=CONSTRAINED,
    )
    constraints: Constraints = setting(Constraints(), stages=(*CONSTRAINED, "full_coreset"))

    @property
    def takes_over(self) -> bool:
        """Whether coresets depend on the samples or coresets of the run that the dataset extends."""
        return self.keep_earlier or self.fraction_of == "new"

    @property
    def is_constrained(self) -> bool:
        """Whether coresets are another choice than the methods' own."""
        return self.constraints.is_set or self.takes_over


class TargetModel(Section):
    """The large model that is finetuned."""

    STAGES = ("difficulty", "finetune_model")

    name: StrictStr = setting(description="hub name, or a folder")
    label: Name = setting("target", "name of the model in paths and tables", expanded=True)
    revision: StrictStr | None = setting(None, "branch, tag or commit on the hub")
    trust_remote_code: StrictBool = setting(
        False, "run Python code that the checkpoint ships", stages=("difficulty", "finetune_model", "evaluate_model")
    )
    chat_template: StrictStr | None = setting(None, CHAT_TEMPLATE)
    seeds: list[Size] = setting([0], "one finetuned model per seed", min_length=1, expanded=True)
    full: StrictBool = setting(
        True, "also finetune on the full data, against which relative performance is measured", expanded=True
    )
    training: Training

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the model is loaded from."""
        return Checkpoint(self.name, self.revision, self.trust_remote_code, self.chat_template)


class TaskGroup(Section):
    """Tasks that one job evaluates."""

    STAGES = ("evaluate_model",)

    name: Name = setting(description="name of the group in paths")
    tasks: list[StrictStr] = setting(min_length=1, description="lmms-eval tasks or groups")
    judge: StrictBool | None = setting(
        None,
        "whether a task needs a judge (another model, with an API key): the group may fail without taking the report "
        "along; null: whether a task is known to need one",
        operational=True,
    )

    @property
    def may_fail(self) -> bool:
        """Whether the report goes on without this group if its evaluation fails."""
        return any(task.startswith(JUDGED_TASKS) for task in self.tasks) if self.judge is None else self.judge


class Evaluation(Section):
    """Evaluation of the finetuned models with lmms-eval."""

    STAGES = ("evaluate_model",)

    groups: list[TaskGroup] = setting(
        min_length=1, description="one job per model and group; with holdout, by default only holdout", expanded=True
    )
    holdout: Annotated[float, Field(ge=0, le=0.5, strict=True)] = setting(
        0.0,
        "share of the dataset that is in no coreset, and that the tasks of the group {name: holdout, tasks: [holdout]} "
        "ask; samples of one image stay together",
        stages=("manifest",),
    )
    include_path: StrictStr | None = setting(
        None, "folder of task files in addition to those of lmms-eval", stages=("evaluate_model", "leaks")
    )
    backend: StrictStr = setting(
        "coincide",
        "model class of lmms-eval: coincide, which evaluates every family as it was trained, or one that it ships",
    )
    model_args: dict[StrictStr, StrictStr | StrictInt | StrictBool | float] = setting(
        {},
        "further arguments of that class, passed unchanged, such as {max_pixels: 1003520}; they override the device "
        "and dtype that known classes get",
    )
    python: StrictStr | None = setting(
        None,
        "Python of another environment that has lmms-eval; null: the workflow's environment",
        stages=("evaluate_model", "leaks"),
    )
    batch_size: Count = setting(32, "questions per batch", operational=True)
    device: Device = setting("auto", "auto: the GPU if there is one", operational=True)
    dtype: Dtype = setting("float32", "dtype of weights and computation")
    limit: Count | None = setting(None, "only the first questions of each task, for a quick look")
    learned_above: Annotated[float, Field(ge=0), FROM_YAML] = setting(
        0.0,
        "tasks on which the full-data model scores no higher are left out of the average relative performance, since a "
        "ratio to a score at chance is noise; 0: all tasks count, as in the paper",
        stages=("summary", "comparison"),
    )

    @model_validator(mode="before")
    @classmethod
    def _asks_the_held_out_samples(cls, values):
        if isinstance(values, dict) and values.get("holdout") and "groups" not in values:
            return {**values, "groups": [{"name": HOLDOUT, "tasks": [HOLDOUT]}]}
        return values

    @model_validator(mode="after")
    def _holds_out_what_it_asks(self):
        is_asked = any(HOLDOUT in group.tasks for group in self.groups)
        if any(HOLDOUT in group.tasks and len(group.tasks) > 1 for group in self.groups):
            raise ValueError(f"a group has the task {HOLDOUT} and others; give it a group of its own")
        if self.holdout and not is_asked:
            group = f"{{name: {HOLDOUT}, tasks: [{HOLDOUT}]}}"
            raise ValueError(f"holdout is set, but no group asks it; add {group} to groups")
        if is_asked and not self.holdout:
            raise ValueError(f"a group has the task {HOLDOUT}, but nothing is held out; set holdout, such as 0.02")
        return self


class TransferCheck(Section):
    """Measures the premise of the method: finetune on one cluster, evaluate on the others."""

    STAGES = ("check_transfer",)

    clusters: Annotated[StrictInt, Field(ge=3)] = setting(16, "clusters, drawn at random")
    samples: Count = setting(32, "samples per cluster to train on, and as many to evaluate on")
    epochs: Positive = setting(2.0, "passes over a cluster's samples")
    batch_size: Count = setting(8, "samples per step")
    learning_rate: Positive = setting(1e-4, "peak learning rate")
    device: Device = setting("auto", "auto: the GPU if there is one", operational=True)
    seed: Size = setting(0, "seed of the draws and of the training")


class Browser(Section):
    """The cluster browser, which the target `browse` writes."""

    STAGES = ("browser",)

    members: Annotated[StrictInt, Field(ge=2, le=1000)] = setting(
        40, "largest number of samples on the page of a cluster; kept samples have at most half of these places"
    )
    thumbnail_pixels: Annotated[StrictInt, Field(ge=16, le=1024)] = setting(
        160, "largest width and height of the thumbnails"
    )


class Node(Section):
    """What a node of the cluster has, where the check before the first job (preflight) cannot see it."""

    gpus: Count | None = setting(None, "GPUs; null: those of this machine, or what Slurm tells", operational=True)
    gpu_memory: Positive | None = setting(None, "GiB of each GPU; null: of this machine's", operational=True)
    memory: Positive | None = setting(None, "GiB of host memory; null: of this machine", operational=True)


class Modules(Section):
    """Environment modules that the stages load, with Snakemake's option `--sdm env-modules`."""

    dataset: list[StrictStr] = setting([], "modules of the dataset and demo rules", operational=True)
    extraction: list[StrictStr] = setting([], "modules of the extraction rules", operational=True)
    selection: list[StrictStr] = setting([], "modules of the clustering, selection and method rules", operational=True)
    training: list[StrictStr] = setting([], "modules of the training rules", operational=True)
    evaluation: list[StrictStr] = setting([], "modules of the evaluation rules", operational=True)
    reporting: list[StrictStr] = setting([], "modules of the reporting and study rules", operational=True)


class Run(Section):
    """One of several runs: its name, and the settings in which it differs from the rest of the config."""

    run: Name = setting(description="results go to results/<run>/")
    dataset: dict[str, Any] = setting({}, "settings that differ")
    reference_model: dict[str, Any] = setting({}, "settings that differ")
    clustering: dict[str, Any] = setting({}, "settings that differ")
    selection: dict[str, Any] = setting({}, "settings that differ")
    target_model: dict[str, Any] = setting({}, "settings that differ")
    evaluation: dict[str, Any] = setting({}, "settings that differ")


class Pilot(Section):
    """The target `pilot`: which method beats random choice on a subsample of the dataset (docs/pilot.md)."""

    samples: Count = setting(5000, "samples of the dataset, from all sources", operational=True)
    holdout: Annotated[float, Field(gt=0, le=0.5, strict=True)] = setting(
        0.1, "share of these samples that the models are asked", operational=True
    )
    fraction: Fraction = setting(0.2, "share of the rest that each method keeps", operational=True)
    replicates: Annotated[list[Size], Field(min_length=2)] = setting(
        [0, 1, 2, 3, 4], "seeds of clusters, draws and training", operational=True
    )
    methods: list[StrictStr] | None = setting(
        None,
        "methods to compare, random among them; null: all that this config has the models for",
        operational=True,
        min_length=2,
    )
    variants: dict[Name, dict[StrictStr, dict[str, Any]]] = setting(
        {
            "published": {"selection": {"budget": "published"}},
            "even": {"selection": {"budget": "even"}},
            "size": {"selection": {"budget": "size"}},
            "tau-0.02": {"selection": {"budget": "published", "temperature": 0.02}},
            "tau-0.5": {"selection": {"budget": "published", "temperature": 0.5}},
        },
        "name -> settings to compare, by section, of coincide; of other methods with selection.methods. Those that the "
        "config has already are left out",
        operational=True,
    )
    k: Count | None = setting(None, "number of clusters; null: one per 66 samples", operational=True)
    model: Literal["reference", "target"] = setting(
        "reference",
        "the model that is finetuned on each coreset; target: more expensive, but right where the reference model has "
        "already learned from such data",
        operational=True,
    )
    epochs: Positive = setting(1.0, "passes over a coreset", operational=True)
    batch_size: Count = setting(16, "samples per step", operational=True)
    learning_rate: Positive | None = setting(
        None, "peak learning rate; null: that of target_model.training", operational=True
    )


class Config(Section):
    """A whole run."""

    run: Name = setting(description="results go to results/<run>/")
    runs: list[Run] = setting([], "several runs instead of one; what they have in common is computed once")
    replicates: list[Size] = setting(
        [], "seeds: each run is repeated per seed, with its own clusters, draws and training"
    )
    compare: Annotated[list[StrictStr], Field(max_length=2)] = setting(
        [],
        "two runs or two coresets for the target `compare`: names of runs, or folders such as results/<run> and "
        "results/<run>/coresets/<method>/<fraction>; []: the first two runs of the config",
    )
    variant: StrictStr = setting("", "label that tells runs apart in a comparison; filled in for replicates")
    replicate: Size = setting(0, "number of the run among the replicates of its variant; filled in")
    dataset: Dataset
    reference_model: ReferenceModel
    clustering: Clustering
    selection: Selection
    target_model: TargetModel
    evaluation: Evaluation
    transfer_check: TransferCheck = TransferCheck()
    browser: Browser = Browser()
    pilot: Pilot = Pilot()
    mini_mix: MiniMix = MiniMix()
    even_mix: EvenMix = EvenMix()
    clip_model: ClipModel = ClipModel()
    tiny_models: dict[Literal["reference", "target", "clip"], TinyModel] = setting(
        {}, "models that the workflow builds itself, for names under resources/models/"
    )
    converted_models: dict[Name, ConvertedModel] = setting(
        {}, "models that the workflow converts into transformers' format, each as resources/models/<name>"
    )
    modules: Modules = Modules()
    node: Node = Node()

    @model_validator(mode="after")
    def _compares_two(self):
        if len(self.compare) == 1:
            raise ValueError(f"compare has one name, {self.compare[0]}; give two runs or two coresets, or []")
        return self

    @model_validator(mode="after")
    def _no_duplicates(self):
        for key, values in (
            ("replicates", self.replicates),
            ("selection.fractions", self.selection.fractions),
            ("selection.methods", self.selection.methods),
            ("reference_model.extra_metrics", self.reference_model.extra_metrics),
            ("pilot.replicates", self.pilot.replicates),
            ("pilot.methods", self.pilot.methods or []),
            ("target_model.seeds", self.target_model.seeds),
            ("evaluation.groups", [group.name for group in self.evaluation.groups]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: duplicate value; remove one")
        return self
