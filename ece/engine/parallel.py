"""Several processes edit together, as `torchrun` starts them or torch.distributed joined them.

    torch.distributed.init_process_group("gloo")     # or as `torchrun` has it done
    edit_sequence(model, tokenizer, facts, stats, config, batch, engine=Together())

`Together` shares the facts of a batch: each process descends on some, and all get the sums. Every
process has the whole model and all facts, and ends with the weights that one process alone
would have, bit for bit: each fact is measured by one process, and what the others add is zero.
(Where clusters descend on the "mean" loss of their facts, sums differ by rounding.) What is run
once per batch, the model below the values and the keys, every process runs itself. Layers can be
dealt out for the solve (`ece.storage.held`).

Where a model lies in parts (`ece.loading.sharding`), the processes run the same on all facts, and
`Processes` is all they need.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed

from ece.engine.batching import prepare
from ece.engine.keys import reader
from ece.errors import EditError, StateError
from ece.objective import Objective


class Processes:
    """The processes that run one program; each calls the same functions in the same order."""

    def __init__(self, group: Any = None):
        self.group, self.rank = group, distributed.get_rank(group)
        self.count = distributed.get_world_size(group)

    def total(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes."""
        summed = tensor.clone()
        with self._all():
            distributed.all_reduce(summed, group=self.group)
        return summed

    def first(self, value: Any) -> Any:
        """Give all processes what the first one has; also the way to wait for it."""
        found = [value]
        with self._all():
            distributed.broadcast_object_list(found, group=self.group, group_src=0)
        return found[0]

    def result_of(self, rank: int, compute: Callable[[], tuple[Tensor, Any]]) -> tuple:
        """Let one process compute a tensor and what belongs to it; all get both, or its error."""
        found, tensor = [None], None
        if rank == self.rank:
            try:
                tensor, more = compute()
                tensor = tensor.contiguous()
                found = [(None, tensor.shape, tensor.dtype, tensor.device.type, more)]
            except EditError as error:
                found = [(error, None, None, None, None)]
        with self._all():
            distributed.broadcast_object_list(found, group=self.group, group_src=rank)
        error, shape, dtype, device, more = found[0]
        if error is not None:
            raise error
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype, device=device)
        with self._all():
            distributed.broadcast(tensor, group=self.group, group_src=rank)
        return tensor, more

    def gathered(self, value: Any) -> list:
        """Give all processes what each has, in the order of the processes."""
        found = [None] * self.count
        with self._all():
            distributed.all_gather_object(found, value, group=self.group)
        return found

    def agree(self, what: str, mark: str) -> None:
        """Raise `StateError` unless all processes have the same `mark`."""
        if len(set(self.gathered(mark))) > 1:
            raise StateError(f"the processes differ in {what}; give all of them the same model, "
                             "facts, statistics and settings")  # fmt: skip

    @contextmanager
    def _all(self) -> Iterator[None]:
        """Say so where one of the processes is there no more."""
        try:
            yield
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise StateError(f"process {self.rank} of {self.count} lost another one ({why}); "
                             "start all of them again") from error  # fmt: skip


class Together(Processes):
    """The engine for processes that share the facts of a batch."""

    reader = staticmethod(reader)

    def prepare(self, *given) -> Objective:
        """Prepare the facts as a process alone does; see `ece.engine.prepare`."""
        return replace(prepare(*given), share=self.share, total=self.total)

    def share(self, parts: Iterable) -> Iterator:
        """Take every n-th part; parts are as they would be for one process."""
        return islice(parts, self.rank, None, self.count)

    def spread(self, items: list, call: Callable[[list], Any]) -> list:
        """Call each process on a stretch of the items of its own; all get all results, in order.

        Where there are fewer items than processes, each makes the one call.
        """
        if len(items) < self.count:
            return [call(items)]
        first, end = (len(items) * at // self.count for at in (self.rank, self.rank + 1))
        return self.gathered(call(items[first:end]))
