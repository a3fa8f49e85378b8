"""Several processes share the facts of a batch: each descends on some, and all get the sums.

    torch.distributed.init_process_group("gloo")     # or as `torchrun` has it done
    edit_sequence(model, tokenizer, facts, stats, config, batch, engine=Together())

Every process has the whole model and all facts, and ends with the weights that one process alone
would have, bit for bit: each fact is measured by one process, and what the others add is zero.
(Where clusters descend on the "mean" loss of their facts, sums differ by rounding.) What is run
once per batch, the model below the values and the keys, every process runs itself.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, distributed

from ece.engine.batching import prepare
from ece.engine.keys import reader
from ece.errors import StateError
from ece.objective import Objective


class Together:
    """The engine for processes that torch.distributed has joined."""

    reader = staticmethod(reader)

    def __init__(self, group: Any = None):
        self.group, self.rank = group, distributed.get_rank(group)
        self.count = distributed.get_world_size(group)

    def prepare(self, *given) -> Objective:
        """Prepare the facts as a process alone does; see `ece.engine.prepare`."""
        return replace(prepare(*given), share=self.share, total=self.total)

    def share(self, parts: list) -> list:
        """Take every n-th part; parts are as they would be for one process."""
        return parts[self.rank :: self.count]

    def total(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes."""
        summed = tensor.clone()
        try:
            distributed.all_reduce(summed, group=self.group)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise StateError(f"process {self.rank} of {self.count} lost another one ({why}); "
                             "start all of them again") from error  # fmt: skip
        return summed

    def agree(self, what: str, mark: str) -> None:
        """Raise `StateError` unless all processes have the same `mark`."""
        marks: list[str] = [""] * self.count
        distributed.all_gather_object(marks, mark, group=self.group)
        if len(set(marks)) > 1:
            raise StateError(f"the processes differ in {what}; give all of them the same model, "
                             "facts, statistics and settings")  # fmt: skip
