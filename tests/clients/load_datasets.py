"""Load JSON files with the version of `datasets` that an environment has.

Arguments: JSON of dict of name -> {folder}. Prints dict of name -> {ids, images (type of the column), rows}.
"""

import json
import sys

import datasets

loaded = {}
for name, case in json.loads(sys.argv[1]).items():
    files = f"{case['folder']}/coreset.json"
    samples = datasets.load_dataset("json", data_files=files, split="train", cache_dir=f"{case['folder']}/cache")
    loaded[name] = {"id": samples.features["id"].dtype, "rows": list(samples)}
print(json.dumps(loaded))
