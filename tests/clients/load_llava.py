"""Load datasets with LLaVA's own trainer. Runs in its environment.

Arguments: JSON of dict of name -> {folder, images}. Prints dict of name -> list of {length (of the tokens), has_image,
pixels (digest)}.
"""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import sentencepiece
from llava.constants import IMAGE_TOKEN_INDEX
from llava.train.train import LazySupervisedDataset
from transformers import CLIPImageProcessor, LlamaTokenizer

cases = json.loads(sys.argv[1])
# LLaVA's tokenizer is Vicuna's, which is not on this machine; this is one of the same class
texts = [
    turn["value"]
    for case in cases.values()
    for record in json.loads(Path(case["folder"], "coreset.json").read_text())
    for turn in record["conversations"]
]
prefix = str(Path(next(iter(cases.values()))["folder"]) / "tokenizer")
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_prefix=prefix, vocab_size=400, hard_vocab_limit=False, byte_fallback=True
)
tokenizer = LlamaTokenizer(f"{prefix}.model", model_max_length=2048)
tokenizer.pad_token = tokenizer.unk_token
size = {"height": 32, "width": 32}
processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
loaded = {}
for name, case in cases.items():
    arguments = SimpleNamespace(
        image_folder=case["images"] or case["folder"],
        image_processor=processor,
        image_aspect_ratio="pad",
        is_multimodal=True,
        mm_use_im_start_end=False,
    )
    samples = LazySupervisedDataset(f"{case['folder']}/coreset.json", tokenizer, arguments)
    loaded[name] = [
        {
            "length": len(sample["input_ids"]),
            "has_image": bool((sample["input_ids"] == IMAGE_TOKEN_INDEX).any()),
            "pixels": hashlib.sha256(sample["image"].numpy().tobytes()).hexdigest(),
        }
        for sample in (samples[i] for i in range(len(samples)))
    ]
print(json.dumps(loaded))
