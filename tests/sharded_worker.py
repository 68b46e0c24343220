"""Entry point of a training process that shards its model over gloo, on a CPU.

accelerate shards models only on accelerators, but torch does it on a CPU, too. This tells accelerate that it may; all
else is what processes with GPUs run. STOP_AFTER in the environment: the step after which a process ends with an error.
"""

import os
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from coincide.training import finetune
from coincide.training.worker import main

initialise = AcceleratorState.__init__


def initialise_sharded(self, *arguments, **options):
    """As accelerate does for processes with GPUs. Every use of the state sets it up again."""
    initialise(self, *arguments, **options)
    plugin = options.get("fsdp_plugin") or self._shared_state.get("fsdp_plugin")
    assert plugin is not None
    self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
    if self._mixed_precision != "no":
        plugin.set_mixed_precision(self._mixed_precision)


def stop(self, args, state, control, **kwargs):
    """End the process after a step."""
    if state.global_step == int(os.environ["STOP_AFTER"]):
        os._exit(1)


if __name__ == "__main__":
    AcceleratorState.__init__ = initialise_sharded
    if "STOP_AFTER" in os.environ:
        finetune._ProgressLines.on_step_end = stop
    main(sys.argv[1])
