"""Groups of logits as columns: what goes over a group's few positions is then whole vectors, in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of which a few columns fit into the cache of one CPU core.
_CACHED_GROUPS = 2**14


def wide(logits: Tensor) -> Tensor:
    """The logits in float32, or float64 as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def in_blocks(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A function of rows `[B, M]` whose value is columns `[M, B]`, of a block of groups at a time, as rows `[G, M]`.

    A block's intermediate values stay in a CPU's cache, and memory is asked for once, for the result: new pages cost as
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
    """Rows `[B, M]` as columns `[M, B]`, whole vectors to a CPU (`t().contiguous()` takes three times as long)."""
    return torch.stack(rows.unbind(1))


def sums_of_others(columns: Tensor) -> Tensor:
    """Sum of the other columns of each, `[M, B]`; exact, where total minus own would cancel."""
    sums = torch.empty_like(columns)
    for place in range(len(columns)):
        first, *more = [column for other, column in enumerate(columns) if other != place]
        total = sums[place].copy_(first)
        for column in more:
            total += column
    return sums


def keep_largest(columns: Tensor, n: int) -> Tensor:
    """Which of each row's columns `[M, B]` are the n largest, bool; writes over them."""
    # Ranks by pairwise comparison: exact n even under ties, and several times faster than topk over 4 columns.
    # A comparison with NaN is always false, so that its place would hang on the order of the comparisons.
    columns.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=columns.device)
    for later in range(1, len(columns)):
        for earlier in range(later):
            earlier_wins = columns[earlier] >= columns[later]
            ranks[later] += earlier_wins
            ranks[earlier] += ~earlier_wins
    return ranks < n
