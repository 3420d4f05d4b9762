"""How often each sample comes in an epoch: shares of data sets, and languages by temperature.

A rate of 1 is once an epoch, 2.5 twice or three times, 0.1 in one epoch of ten. Rates are scaled so
that an epoch has as many seconds as the data has. The draw for one shard and language depends on
(seed, epoch, shard) and the counts of the shard's index header alone, so a plan still needs no
entries to find a step.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qwen3asr_train.data.shards import Entry, ShardSummary
from qwen3asr_train.errors import UserError

Rates = Mapping[str, float]
"""Language name ("" for samples without one) -> how often its samples come in an epoch."""


def mixture_rates(sets: Mapping[str, Sequence[ShardSummary]], shares: Mapping[str, float] | None,
                  temperature: float) -> dict[str, Rates]:
    """Shard path -> the rates of its languages.

    ``shares``: what part of an epoch's seconds comes from each data set, scaled to sum to 1; None:
    as large as it is. ``temperature`` T: inside a data set a language with a share p of the seconds
    gets p^(1/T), scaled; 1 leaves them as they are, and the larger, the more alike they become
    (Arivazhagan et al. 2019). Raises UserError for shares of sets that there are not.
    """
    if temperature < 1:
        raise UserError(f"data.temperature={temperature:g}: at least 1")
    seconds = {name: _seconds(shards) for name, shards in sets.items()}
    totals = {name: sum(languages.values()) for name, languages in seconds.items()}
    if shares is None:
        shares = totals
    if set(shares) != set(sets) or min(shares.values()) < 0 or not sum(shares.values()):
        raise UserError(f"data.shares names {sorted(shares)}, data.train {sorted(sets)}: one share "
                        "of at least 0 for each set, and not all 0")
    everything, all_shares = sum(totals.values()), sum(shares.values())
    rates: dict[str, Rates] = {}
    for name, shards in sets.items():
        wanted = everything * shares[name] / all_shares
        powers = {language: part ** (1 / temperature) for language, part in seconds[name].items()}
        scale = wanted / sum(powers.values()) if powers else 0.0
        by_language = {language: scale * powers[language] / part
                       for language, part in seconds[name].items()}
        rates |= {shard.path: by_language for shard in shards}
    return rates


def _seconds(shards: Sequence[ShardSummary]) -> dict[str, float]:
    """Seconds by language; text without audio counts a little, so that it has a rate too."""
    found: dict[str, float] = {}
    for shard in shards:
        for language, (samples, seconds) in shard.languages.items():
            found[language] = found.get(language, 0.0) + max(seconds, samples * 1e-3)
    return {language: seconds for language, seconds in found.items() if seconds > 0}


def drawn_counts(shard: ShardSummary, rates: Rates, rng: np.random.Generator) -> dict[str, int]:
    """How many samples of each language this shard gives to an epoch: its rate's multiple, rounded
    up or down at random so that the mean is right."""
    return {language: math.floor(samples * rates.get(language, 0.0) + rng.random())
            for language, (samples, _) in sorted(shard.languages.items())}


def draw_entries(entries: Sequence[Entry], counts: Mapping[str, int], rng: np.random.Generator
                 ) -> list[Entry]:
    """So many entries of each language; repeated ones differ in ``copy``."""
    drawn: list[Entry] = []
    for language, count in sorted(counts.items()):
        pool = [entry for entry in entries if (entry.language or "") == language]
        if not pool:
            continue
        copies, rest = divmod(count, len(pool))
        drawn += [entry._replace(copy=copy) for copy in range(copies) for entry in pool]
        drawn += [pool[i]._replace(copy=copies) for i in rng.permutation(len(pool))[:rest]]
    return drawn
