"""Error rates, language identification and their uncertainty over a set of utterances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from qwen3asr_train.evaluation.languages import Unit, known_language, names_language
from qwen3asr_train.evaluation.text import mixes_scripts, units


@dataclass(frozen=True)
class Utterance:
    """One transcribed clip, as written and not yet normalised.

    `language` is that of the reference and decides how the utterance is normalised and scored;
    None means no speech. Languages are names or codes, of dialects too; several are joined by a
    comma or plus (`"Chinese+English"`). `duration` is in seconds.
    `english_normaliser` as in `text.normalise`. `context`: the system message, with the names that
    are `listed` in it; `entities`: names in the reference that matter.
    """

    key: str
    reference: str
    hypothesis: str
    language: str | None
    predicted_language: str | None
    duration: float
    source: str = ""
    english_normaliser: str = "whisper"
    context: str = ""
    listed: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()

    def units(self, unit: Unit | None = None) -> tuple[list[str], list[str]]:
        """Normalised scoring units of the reference and of the hypothesis; see `text.units`."""
        reference, hypothesis = (
            units(text, self.language, self.english_normaliser, unit)
            for text in (self.reference, self.hypothesis)
        )
        return reference, hypothesis


@dataclass(frozen=True)
class Counts:
    """Edit operations of a minimal alignment, in scoring units."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_units(self) -> int:
        """Length of the reference."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float:
        """Errors per reference unit; for an empty reference the number of insertions (as jiwer)."""
        return self.errors / max(1, self.reference_units)


def edit_counts(ref_units: Sequence[str], hyp_units: Sequence[str]) -> Counts:
    """Substitutions, deletions, insertions and hits of a minimal edit path."""
    tags = [operation.tag for operation in Levenshtein.editops(ref_units, hyp_units)]
    substitutions, deletions = tags.count("replace"), tags.count("delete")
    return Counts(
        substitutions=substitutions,
        deletions=deletions,
        insertions=tags.count("insert"),
        hits=len(ref_units) - substitutions - deletions,
    )


def align(
    ref_units: Sequence[str], hyp_units: Sequence[str]
) -> list[tuple[str | None, str | None, str]]:
    """Rows `(reference, hypothesis, op)` of a minimal edit path, in reading order.

    `op` is `"equal"`, `"substitute"`, `"delete"` (hypothesis None) or `"insert"` (reference None).
    Adds up to what `edit_counts` counts.
    """
    rows: list[tuple[str | None, str | None, str]] = []
    for block in Levenshtein.opcodes(ref_units, hyp_units):
        ref = ref_units[block.src_start : block.src_end]
        hyp = hyp_units[block.dest_start : block.dest_end]
        if block.tag == "delete":
            rows += [(unit, None, "delete") for unit in ref]
        elif block.tag == "insert":
            rows += [(None, unit, "insert") for unit in hyp]
        else:
            op = "equal" if block.tag == "equal" else "substitute"
            rows += [(r, h, op) for r, h in zip(ref, hyp, strict=True)]
    return rows


@dataclass(frozen=True)
class _Table:
    """What the metrics need of N utterances; every figure is a ratio of weighted column sums."""

    edits: np.ndarray  # (N, 4) substitutions, deletions, insertions, hits in own scoring units
    characters: np.ndarray  # (N, 2) character errors, reference characters
    mixed: np.ndarray  # (N, 2) errors and reference units in mixed units
    code_switched: bool  # whether any reference mixes scripts
    flags: np.ndarray  # (N, 4) LID right, no error, empty reference, text on empty reference
    duration: np.ndarray  # (N,) s
    languages: np.ndarray  # (N,) names, "None" for no speech


def _row(utterance: Utterance) -> tuple[list[int], list[int], list[int], bool, list[bool], str]:
    language = known_language(utterance.language)
    own, characters, mixed = (utterance.units(unit) for unit in (None, "char", "mixed"))
    character_counts, mixed_counts = edit_counts(*characters), edit_counts(*mixed)
    # An utterance's own units are nearly always one of the two, whatever its language.
    counts = (mixed_counts if own == mixed else character_counts if own == characters
              else edit_counts(*own))
    no_speech = not utterance.reference.strip()
    return (
        [counts.substitutions, counts.deletions, counts.insertions, counts.hits],
        [character_counts.errors, character_counts.reference_units],
        [mixed_counts.errors, mixed_counts.reference_units],
        mixes_scripts(mixed[0]),
        [
            names_language(utterance.predicted_language, language),
            counts.errors == 0,
            no_speech,
            no_speech and bool(utterance.hypothesis.strip()),
        ],
        str(language),
    )


def _table(utterances: Sequence[Utterance]) -> _Table:
    if not utterances:
        raise ValueError("cannot score an empty list of utterances")
    edits, characters, mixed, switched, flags, languages = zip(
        *map(_row, utterances), strict=True)
    return _Table(
        edits=np.array(edits, dtype=np.float64),
        characters=np.array(characters, dtype=np.float64),
        mixed=np.array(mixed, dtype=np.float64),
        code_switched=any(switched),
        flags=np.array(flags, dtype=np.float64),
        duration=np.array([utterance.duration for utterance in utterances], dtype=np.float64),
        languages=np.array(languages),
    )


def _summarise(table: _Table, weight: np.ndarray) -> dict[str, float]:
    """Metrics of the table with utterance n counted `weight[n]` times."""
    edits, characters, flags = weight @ table.edits, weight @ table.characters, weight @ table.flags
    count, reference_units = weight.sum(), max(1.0, edits[[0, 1, 3]].sum())
    metrics = {
        "wer": edits[:3].sum() / reference_units,
        "cer": characters[0] / max(1.0, characters[1]),
        "lid_accuracy": flags[0] / count,
        "sentence_accuracy": flags[1] / count,
        "substitutions": edits[0] / reference_units,
        "deletions": edits[1] / reference_units,
        "insertions": edits[2] / reference_units,
        "utterances": count,
        "audio_seconds": weight @ table.duration,
    }
    if table.code_switched:
        mixed = weight @ table.mixed
        metrics["mer"] = mixed[0] / max(1.0, mixed[1])
    if flags[2]:
        metrics["nonspeech_false_rate"] = flags[3] / flags[2]

    by_language = []
    for language in np.unique(table.languages):
        here = weight * (table.languages == language)
        if not here.any():
            continue
        metrics[f"lid_accuracy/{language}"] = here @ table.flags[:, 0] / here.sum()
        local = here @ table.edits
        if local[[0, 1, 3]].sum():
            by_language.append(local[:3].sum() / local[[0, 1, 3]].sum())
            metrics[f"wer/{language}"] = by_language[-1]
    if by_language:
        metrics["wer_macro"] = np.mean(by_language)
    return {name: float(value) for name, value in metrics.items()}


def score(utterances: Sequence[Utterance]) -> dict[str, float]:
    """Flat metrics of a set of utterances; rates are shares (0.05, not 5).

    `wer`
        All edit errors over all reference units, not an average of averages. Each utterance is in
        the scoring unit of its own language: words, but characters for Chinese, Cantonese,
        Japanese, Korean and Thai, where the figure is a CER, and mixed units for utterances in
        several languages of both kinds ("Chinese,English"). Insertions on empty references count
        in the numerator; with no reference unit at all the denominator is 1 (as jiwer).
    `wer/<Language>`, `wer_macro`
        The same for each language, and the mean over languages. Only languages with at least one
        reference unit have one; `None` stands for references without a language.
    `cer`
        Character errors over reference characters of all utterances, spaces removed.
    `mer`
        Only when some reference mixes scripts (我想 go): the mixed error rate of all utterances, a
        unit being a Han, kana, Hangul or Thai character or a word in any other script. Not jiwer's
        `mer`, the match error rate.
    `substitutions`, `deletions`, `insertions`
        The three parts of `wer`, which they add up to.
    `lid_accuracy`, `lid_accuracy/<Language>`
        Share of utterances whose predicted language is the reference's; no language predicted where
        there is none counts as right. In a code-switched utterance any of its languages is right
        (`languages.names_language`). A dialect counts as its output language on both sides.
    `sentence_accuracy`
        Share of utterances without an error after normalisation.
    `nonspeech_false_rate`
        Only when some references are empty: share of those that got any text.
    `utterances`, `audio_seconds`
        How much was scored.

    Raises:
        ValueError: `utterances` is empty.
    """
    table = _table(utterances)
    return _summarise(table, np.ones(len(utterances)))


def bootstrap_interval(
    utterances: Sequence[Utterance],
    metric: str = "wer",
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval `(low, high)` of a metric of `score`, resampling utterances.

    Utterances are taken as independent, which those of one speaker are not: read the interval as a
    lower bound of the uncertainty. Source: Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", ICASSP 2004. Resamples in which the metric is not
    defined (no utterance of the language) are left out.

    Raises:
        ValueError: `utterances` is empty, or `score` gives no such metric for them.
    """
    table, n = _table(utterances), len(utterances)
    known = _summarise(table, np.ones(n))
    if metric not in known:
        raise ValueError(f"no metric {metric!r} here; there are: {', '.join(sorted(known))}")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        weight = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        value = _summarise(table, weight).get(metric)
        if value is not None:
            values.append(value)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
