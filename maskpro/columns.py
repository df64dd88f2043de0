"""Groups of logits as columns: operations over a group's few positions then work on whole vectors in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Groups in a block: a few columns of this length fit into the cache of one CPU core.
_CACHED_GROUPS = 2**14


def wide(logits: Tensor) -> Tensor:
    """The logits in float32, or float64 as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def in_blocks(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Apply a function from rows `[B, M]` to columns `[M, B]` to blocks of groups, one at a time; gives rows `[G, M]`.

    A block's intermediate values stay in a CPU's cache. Memory is allocated once, for the result, because new pages cost as
    much as the arithmetic on them. A GPU takes all groups at once.
    """
    groups = len(rows[0])
    size = max(1, groups) if rows[0].is_cuda else _CACHED_GROUPS
    result: Tensor | None = None
    for start in range(0, max(1, groups), size):
        columns = function(*(part[start : start + size] for part in rows))
        if result is None:
            result = columns.new_empty(groups, len(columns))
        for place, column in enumerate(columns):
            result[start : start + size, place] = column
    assert result is not None
    return result


def columns_of(rows: Tensor) -> Tensor:
    """Rows `[B, M]` as contiguous columns `[M, B]` (`t().contiguous()` takes three times as long)."""
    return torch.stack(rows.unbind(1))


def sums_of_others(columns: Tensor) -> Tensor:
    """For each column the sum of the others, `[M, B]`. Exact: the total minus the column itself would cancel."""
    sums = torch.empty_like(columns)
    for place in range(len(columns)):
        first, *more = [column for other, column in enumerate(columns) if other != place]
        total = sums[place].copy_(first)
        for column in more:
            total += column
    return sums


def keep_largest(columns: Tensor, n: int) -> Tensor:
    """True for the n largest of each row's columns `[M, B]`, bool; overwrites the columns."""
    # Ranks by pairwise comparison: exact n even under ties, and several times faster than topk over 4 columns.
    # A comparison with NaN is always false, so the rank of a NaN would depend on the order of the comparisons.
    columns.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=columns.device)
    for later in range(1, len(columns)):
        for earlier in range(later):
            earlier_wins = columns[earlier] >= columns[later]
            ranks[later] += earlier_wins
            ranks[earlier] += ~earlier_wins
    return ranks < n
