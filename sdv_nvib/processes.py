"""Several processes that train together: the little that they say to each other.

Second in the flow, beside errors. The caller starts the processes and their process group
(`torchrun`, Ray Train); without one there is one process, and nothing here needs a network.
"""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from sdv_nvib.errors import TrainingError

__all__ = [
    'from_all',
    'from_first',
    'process_rank_and_count',
    'require_equal',
    'sum_over_processes',
]

T = TypeVar('T')


def process_rank_and_count() -> tuple[int, int]:
    """Number of this process and how many there are: (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Sums over all processes, the same in each; `values` is on the device of the training."""
    total = values.clone()
    if process_rank_and_count()[1] > 1:
        dist.all_reduce(total)
    return total


def from_first(value: T) -> T:
    """The value that the first process gave, in every process; pickled on the way."""
    box = [value]
    if process_rank_and_count()[1] > 1:
        dist.broadcast_object_list(box)
    return box[0]


def from_all(value: T) -> list[T]:
    """The values that all processes gave, by rank, in every process; pickled on the way."""
    values = [value] * process_rank_and_count()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def require_equal(fingerprint: str) -> None:
    """Stop where processes that should have read the same table have not.

    Raises:
        TrainingError: The fingerprints differ.
    """
    values = from_all(fingerprint)
    if len(set(values)) > 1:
        raise TrainingError(
            f'All {len(values)} processes must read the same table with the same metadata and '
            f'arguments, they have {len(set(values))} different vocabularies. Give them the same '
            'files, under names of the same order.'
        )
