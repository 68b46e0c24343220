"""Write the held-out samples as tasks of lmms-eval.

Reads the table of the held-out samples, the dataset and the images. Writes a folder of task files and questions.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.dataset.conversation import to_llava
from coincide.dataset.formats import open_dataset
from coincide.evaluation.holdout import write_holdout_tasks

holdout = pd.read_parquet(snakemake.input.holdout, columns=["source", "position"])
records = map(to_llava, open_dataset(config.dataset.annotations).pick(holdout["position"]))
write_holdout_tasks(
    zip(holdout["source"], records),
    config.dataset.image_folders,
    snakemake.output[0],
    follow_links=config.dataset.follow_links,
)
