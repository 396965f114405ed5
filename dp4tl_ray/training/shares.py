"""Which examples of a batch go where: whole batch-norm groups, in order."""

import math
from itertools import pairwise


def shares(batch_size: int, group_size: int, parts: int) -> list[slice]:
    """Cut a batch into runs of whole groups, as equal as possible, the longer ones first.

    Args:
        batch_size: Examples of the batch.
        group_size: Examples per batch-norm group; the last group may be smaller.
        parts: Shares to cut.

    Raises:
        ValueError: There are fewer groups than parts.
    """
    groups = math.ceil(batch_size / group_size)
    if groups < parts:
        raise ValueError(
            f"a batch of {batch_size} has {groups} group(s) of {group_size}, fewer than the "
            f"{parts} workers that are to share it"
        )
    least, longer = divmod(groups, parts)
    borders = [(least * part + min(part, longer)) * group_size for part in range(parts + 1)]
    return [slice(start, min(end, batch_size)) for start, end in pairwise(borders)]


def microbatches(share: slice, group_size: int, size: int | None) -> list[slice]:
    """Cut a share into runs of at most `size` examples, rounded up to whole groups."""
    if size is None:
        return [share]
    step = math.ceil(size / group_size) * group_size
    starts = range(share.start, share.stop, step)
    return [slice(start, min(start + step, share.stop)) for start in starts]
