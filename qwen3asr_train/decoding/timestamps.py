"""The repair of times that run backwards: the released rule in O(n log n)."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise


def repair_times(times: Sequence[float]) -> list[int]:
    """Times in ms, in the order of their slots -> whole ms that never decrease.

    The rule of ``fix_timestamp`` (github.com/QwenLM/Qwen3-ASR, qwen3_forced_aligner.py; in
    transformers ``_fix_timestamps``, quadratic in the slots): what is not on the longest
    non-decreasing subsequence is an outlier. One or two outliers in a row take the time of the
    nearer good neighbour, more of them are spread evenly between the two. Of several longest
    subsequences the same one is chosen as there.
    """
    kept = _longest_non_decreasing(times)
    repaired = list(times)
    for left, right in pairwise([-1, *kept, len(repaired)]):
        first, count = left + 1, right - left - 1
        if not count:
            continue
        before = times[left] if left >= 0 else None
        after = times[right] if right < len(repaired) else None
        for place in range(first, right):
            if before is None or after is None:
                repaired[place] = after if before is None else before
            elif count <= 2:
                nearer_left = place - left <= right - place
                repaired[place] = before if nearer_left else after
            else:
                repaired[place] = before + (after - before) / (count + 1) * (place - left)
    return [int(time) for time in repaired]


def _longest_non_decreasing(values: Sequence[float]) -> list[int]:
    """Places of a longest non-decreasing subsequence.

    The quadratic rule goes back from the first place at which the longest one ends, each time to
    the first possible place before. Places with subsequences of equal length have falling values,
    from left to right, so that place is found by bisection.
    """
    tails: list[float] = []  # the least last value of a subsequence of each length
    levels: list[list[int]] = []  # places whose longest subsequence has this length
    falling: list[list[float]] = []  # their values, negated: these rise
    before: list[int] = []
    for place, value in enumerate(values):
        length = bisect_right(tails, value)
        if length == len(tails):
            tails.append(value)
            levels.append([])
            falling.append([])
        else:
            tails[length] = value
        levels[length].append(place)
        falling[length].append(-value)
        if length:
            # the first of the level below whose value is at most this one: negated, at least
            below = falling[length - 1]
            before.append(levels[length - 1][bisect_left(below, -value)])
        else:
            before.append(-1)
    found, place = [], levels[-1][0] if levels else -1
    while place >= 0:
        found.append(place)
        place = before[place]
    return found[::-1]

