"""Load datasets with LLaMA-Factory, as its training does. Runs in LLaMA-Factory's environment.

Arguments: a model folder, and JSON of dict of name -> {folder, dataset, images}. Prints dict of name -> list of
{turns, images (paths)}.
"""

import json
import sys

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.data.loader import _get_merged_dataset
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

model, cases = sys.argv[1], json.loads(sys.argv[2])
loaded = {}
for name, case in cases.items():
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": model,
        "template": "llava",
        "dataset_dir": case["folder"],
        "dataset": case["dataset"],
        "output_dir": f"{case['folder']}/llamafactory-output",
        "report_to": "none",
        "use_cpu": True,
    }
    if case["images"]:
        arguments["media_dir"] = case["images"]
    model_arguments, data_arguments, training_arguments, _, _ = get_train_args(arguments)
    tokenizer_module = load_tokenizer(model_arguments)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_arguments)
    # counts marks and files, opens the images, applies the template
    settings = (model_arguments, data_arguments, training_arguments)
    encoded = get_dataset(template, *settings, stage="sft", **tokenizer_module)["train_dataset"]
    samples = _get_merged_dataset(data_arguments.dataset, *settings, stage="sft")
    assert len(encoded) == len(samples)
    assert [images or [] for images in encoded["images"]] == [images or [] for images in samples["_images"]]
    loaded[name] = [
        {
            "turns": [["system", row["_system"]]] * bool(row["_system"])
            + [[turn["role"], turn["content"]] for turn in row["_prompt"] + row["_response"]],
            "images": row["_images"] or [],
        }
        for row in samples
    ]
print(json.dumps(loaded))
