# R = processes; A, A_r = values of all processes, of one
"""What the metrics exchange between processes: sums, and values of which each process has another number.

Without a process group, or alone in one, everything is returned as it came.
"""

from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_shared() -> bool:
    """Whether other processes have a part of the data: then every one of them has to join each exchange.

    Example:
        >>> is_shared()
        False
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(values: Tensor) -> Tensor:
    """Add up tensors of one shape, over all processes. The result is on the CPU."""
    if not is_shared():
        return values
    total = values.to(_device(), copy=True)
    dist.all_reduce(total)
    return total.cpu()


def gathered(values: Tensor) -> Tensor:
    """Concatenate values (A_r,) of one dtype, of any number in each process, to (A,). The result is on the CPU."""
    if not is_shared():
        return values
    lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    lengths[dist.get_rank()] = len(values)
    lengths = summed(lengths)  # (R,)
    if not lengths.any():
        return values
    padded = torch.zeros(int(lengths.max()), dtype=values.dtype, device=_device())
    padded[: len(values)] = values.to(padded.device)
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length].cpu() for part, length in zip(parts, lengths.tolist(), strict=True)])


def gathered_objects(value: T) -> list[T]:
    """The values of all processes, in their order."""
    if not is_shared():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def common_dtype(scores: Tensor) -> Tensor:
    """Widen float32 scores to float64 where another process has float64 ones, so that they can be gathered."""
    has_float64 = summed(torch.tensor(int(scores.dtype == torch.float64)))
    return scores.double() if has_float64 else scores


def _device() -> torch.device:
    """NCCL exchanges what is on the process's GPU only."""
    backend = str(dist.get_backend())
    only_gpu = "nccl" in backend and "gloo" not in backend
    return torch.device("cuda", torch.cuda.current_device()) if only_gpu else torch.device("cpu")
