"""Read tar files with the webdataset library. Runs in its environment.

Arguments: the tar files. Prints a list of {key, json, images (digests of the members), size (of the decoded image)}.
"""

import hashlib
import json
import sys

import webdataset

raw = webdataset.WebDataset(sys.argv[1:], shardshuffle=False)
decoded = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("pil")
print(
    json.dumps(
        [
            {
                "key": sample["__key__"],
                "json": other["json"],
                "images": [hashlib.sha256(sample["png"]).hexdigest()] if "png" in sample else [],
                "size": other["png"].size if "png" in sample else None,
            }
            for sample, other in zip(raw, decoded)
        ]
    )
)
