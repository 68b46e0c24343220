"""coincide with a reference model that knows language, against the demo's reference model and random choice.

    make test-models MODEL=smollm2     # installs SmolLM2-135M-Instruct
    .venv/bin/python bench/language_reference.py [--samples 4000] [--trained-on 1500] [--folder F]

The reference model is a LLaVA of SmolLM2-135M-Instruct, the vision tower of the demo's models and a projector. The
projector and adapters are trained on samples that are set aside from selection (the mix's split `pretrain`). One start
of the workflow then compares, over three replicates on a part of the demo's mix, coincide with this reference model and
with the demo's, each with published and with even budgets, and random choice. With a folder, what is finished there is
kept.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
import yaml
from common import REPO, link_workflow, parser, timed, write
from transformers import CLIPImageProcessor, CLIPVisionModel, LlavaForConditionalGeneration

from coincide.base.markdown import markdown_table
from coincide.base.sections import ConvertedModel, Lora, Training
from coincide.dataset.formats import read_records
from coincide.demo import PRETRAINED
from coincide.models.conversion import convert
from coincide.reporting.summary import AVERAGE
from coincide.training.finetune import finetune

sys.path.append(str(REPO / "tests"))
import pretrained

RUN = "language-reference"
MIX = "resources/mini-mix"
LAYERS = [0.17, 0.33, 0.5, 0.67, 0.83]  # depths of the layers that the paper reads
PROJECTOR = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
TRAINING = Training(
    epochs=1, batch_size=16, learning_rate=5e-4, projector_learning_rate=2e-3, warmup=0.05, save_every=20, device="cpu",
    lora=Lora(r=16, alpha=32, dropout=0.0),
)  # fmt: skip


def write_parts(folder):
    """Write the decoder, the demo's vision tower and a random projector; return the section of the conversion."""
    pretrained.write_language_model(folder / "language_model")
    demo = LlavaForConditionalGeneration.from_pretrained(PRETRAINED / "target", dtype=torch.float32)
    tower: CLIPVisionModel = demo.model.vision_tower
    tower.save_pretrained(folder / "vision_tower")
    CLIPImageProcessor.from_pretrained(PRETRAINED / "target").save_pretrained(folder / "vision_tower")
    pretrained.write_projector(folder / "projector", tower.config.hidden_size)
    (folder / "projector/config.json").write_text(json.dumps(PROJECTOR))
    return {part: {"name": str(folder / part)} for part in ("language_model", "vision_tower", "projector")}


def make_reference(folder, count):
    """Assemble the reference model and train it on `count` samples; return its folder and the losses per step."""
    base, output = folder / "base", folder / "trained"
    if not (output / "trainer_state.json").exists():
        if not base.exists():
            shutil.rmtree(folder / "parts", ignore_errors=True)  # of a start that was killed
            convert(ConvertedModel.model_validate(write_parts(folder / "parts")), base)
        records = read_records(folder.parent / MIX / "pretrain.json")
        records = records[:: max(1, len(records) // count)][:count]
        finetune(
            base, records, folder.parent / MIX / "images", TRAINING, seed=0, output=output, checkpoints=folder / "steps"
        )
    log = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    return output, [entry["loss"] for entry in log if "loss" in entry]


def config_of(reference, samples):
    """The comparison's config: a part of the mix, two reference models, two kinds of budgets."""
    language = {"name": str(reference), "layers": LAYERS}
    return {
        "run": RUN,
        "dataset": {"sample": samples},
        "clustering": {"k": None},
        "evaluation": {"learned_above": 0.1},
        "selection": {"budget": "published"},
        "target_model": {"seeds": [0]},
        "replicates": [0, 1, 2],
        "runs": [
            {"run": RUN},
            {"run": "even", "selection": {"methods": ["coincide"], "budget": "even"}},
            {"run": "smollm2", "reference_model": language, "selection": {"methods": ["coincide"]}},
            {
                "run": "smollm2-even",
                "reference_model": language,
                "selection": {"methods": ["coincide"], "budget": "even"},
            },
        ],
    }


def snakemake(folder, *arguments):
    """Start the workflow in a folder of its own."""
    command = [Path(sys.executable).parent / "snakemake", *arguments, "--profile", "profiles/local"]
    subprocess.run(command, cwd=folder, check=True)


def measure(folder, samples, trained_on):
    """Make the reference model, run the comparison; return the figures."""
    link_workflow(folder)
    snakemake(folder, f"{MIX}/train.json")
    seconds, (reference, losses) = timed(make_reference, folder / "language", trained_on)
    path = folder / "config-language.yaml"
    path.write_text(yaml.safe_dump(config_of(reference, samples)))
    comparison_seconds, _ = timed(snakemake, folder, "comparison", "--configfile", path.name)
    intervals, paired = (
        pd.read_csv(folder / f"results/{RUN}-comparison/{name}.csv") for name in ("intervals", "paired")
    )
    return {
        "samples": samples,
        "trained_on": trained_on,
        "loss": [sum(losses[:3]) / 3, sum(losses[-3:]) / 3],
        "training_seconds": seconds,
        "comparison_seconds": comparison_seconds,
        "intervals": intervals[intervals["task"] == AVERAGE].to_dict("records"),
        "paired": paired.to_dict("records"),
    }


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=4000, help="part of the mix that is selected from")
    arguments.add_argument("--trained-on", type=int, default=1500, help="samples to train the reference model on")
    arguments.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = arguments.parse_args()
    if not pretrained.is_installed():
        sys.exit(f"SmolLM2 is not in {pretrained.FOLDER}: make test-models MODEL=smollm2 installs it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        result = measure(folder, options.samples, options.trained_on)
    print(markdown_table(pd.DataFrame(result["intervals"]).round(3)))
    print(f"loss of the reference model: {result['loss'][0]:.2f} at the start, {result['loss'][1]:.2f} at the end")
    write(options.output, None, **result)


if __name__ == "__main__":
    main()
