"""Load datasets with ms-swift. Runs in ms-swift's environment.

Arguments: JSON of dict of name -> {folder, images}. Prints dict of name -> list of {turns, images (digests of the
files' bytes)}.
"""

import hashlib
import json
import os
import sys

from swift.dataset import load_dataset
from swift.template.vision_utils import load_file

loaded = {}
for name, case in json.loads(sys.argv[1]).items():
    os.environ["ROOT_IMAGE_DIR"] = case["images"] or case["folder"]
    samples, _ = load_dataset([f"{case['folder']}/coreset.json"], strict=True, load_from_cache_file=False)
    loaded[name] = [
        {
            "turns": [[turn["role"], turn["content"]] for turn in row["messages"]],
            "images": [
                hashlib.sha256(load_file(image["path"]).read()).hexdigest() for image in row.get("images") or []
            ],
        }
        for row in samples
    ]
print(json.dumps(loaded))
