"""Run train_psi_dit with FSDP2 over gloo: accelerate offers FSDP on accelerators only, torch knows no such limit."""

from accelerate import PartialState
from accelerate.utils import DistributedType

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

from train.train_psi_dit import main  # noqa: E402
from train.trainer import Trainer  # noqa: E402

run = Trainer.run


def run_sharded(self: Trainer):
    """Make sure that this process trains what it says."""
    assert self.accelerator.is_fsdp2
    assert all(type(p).__name__ == "DTensor" for p in self.state.trained.values())
    return run(self)


Trainer.run = run_sharded
main()
