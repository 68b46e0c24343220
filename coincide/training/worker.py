"""Entry point of each process when a training runs in several processes.

`coincide.training.finetune.finetune` starts it with `coincide.training.distributed.launch`:
`python -m coincide.training.worker arguments.json`.
"""

import logging
import os
import sys

import torch

from coincide.base.errors import UserError
from coincide.base.sections import Checkpoint, Training
from coincide.dataset.record_table import RecordTable
from coincide.training.distributed import read_arguments
from coincide.training.finetune import train


def main(arguments_file: str) -> None:
    """Train as one process of the group that torch.distributed started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = read_arguments(arguments_file)
    arguments["checkpoint"] = Checkpoint(**arguments["checkpoint"])
    arguments["training"] = Training(**arguments["training"])
    arguments["records"] = RecordTable(arguments["records"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        train(**arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
