"""Learning-rate schedules as pure functions of the step."""

import math

SCHEDULES = ("cosine", "wsd", "constant")


def lr_factor(step: int, *, total: int, warmup: int, schedule: str, final: float,
              decay_share: float) -> float:
    """Share of the peak rate at ``step`` (0-based) of ``total``.

    Linear warm-up over ``warmup`` steps, then ``cosine`` down to ``final``; or ``wsd`` (warm-up,
    stable, decay; Hu et al. 2024): constant, then linear to ``final`` over the last ``decay_share``
    of the steps; or ``constant``.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1 - (1 - final) * 0.5 * (1 - math.cos(math.pi * progress))
    if schedule == "wsd":
        start = total - max(1, round(decay_share * total))
        if step < start:
            return 1.0
        return 1 - (1 - final) * min(1.0, (step - start) / (total - start))
    if schedule == "constant":
        return 1.0
    raise ValueError(f"schedule {schedule!r}: one of {', '.join(SCHEDULES)}")
