"""The forced aligner's text: units, the ``<timestamp>`` slots among them, and the slots' classes.

A slot stands behind its unit: two of them are its start and its end, one alone is its start. So a
sentence has one slot behind its first unit and two behind its last. With two slots behind every
unit the ids are those of transformers' ``Qwen3ASRProcessor.prepare_forced_aligner_inputs``. Which
slots a training sample has is drawn ("dynamic slot insertion", Qwen3-ASR report, section on the
forced aligner), so that a model can be asked about any of them.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.augment_join import join_texts
from qwen3asr_train.data.collate import IGNORE
from qwen3asr_train.errors import DataError, UserError

SLOT = "<timestamp>"
BOTH, START, NONE = 2, 1, 0
"""Slots behind a unit."""

Times = tuple[float | None, float | None]
"""Start and end of a unit in seconds; None where it is not known."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class SlotOptions:
    """Which slots a training sample has; shares are probabilities.

    ``all_share`` of the samples have both slots behind every unit, as one asks for words;
    ``sentence_share`` those of sentences alone. In the rest each unit has both slots
    (``both_share``), that of its start (``start_share``), or none. Sentences end at punctuation,
    and at pauses of at least ``sentence_pause`` seconds. ``prefix_share`` of all samples have only
    the first of their units, of audio that goes on: so are long recordings aligned piece by piece.

    Raises UserError for what makes no sense.
    """

    all_share: float = 0.5
    sentence_share: float = 0.1
    both_share: float = 0.5
    start_share: float = 0.2
    sentence_pause: float = 0.3
    prefix_share: float = 0.0

    def __post_init__(self) -> None:
        for one, other in (("all_share", "sentence_share"), ("both_share", "start_share")):
            pair = getattr(self, one), getattr(self, other)
            if min(pair) < 0 or sum(pair) > 1:
                raise UserError(f"stage.slots.{one}={pair[0]}, {other}={pair[1]}: shares are from "
                                "0 to 1, also together")
        if not 0 <= self.prefix_share <= 1:
            raise UserError(f"stage.slots.prefix_share={self.prefix_share}: from 0 to 1")


EVERYWHERE = SlotOptions(all_share=1.0, sentence_share=0.0)


def split_units(processor: Qwen3ASRProcessor, text: str, language: str | None) -> list[str]:
    """Words, or characters of Chinese and Cantonese, as the released processor has them.

    ``language`` is an English name; Japanese and Korean need their tokenisers: UserError if these
    are not installed.
    """
    try:
        return processor.split_words_for_alignment(text, language)
    except ImportError as error:
        package = "nagisa" if language.lower() == "japanese" else "soynlp"
        raise UserError(f"{language} is cut into words by {package}, which is not installed: "
                        f"pip install {package}") from error


class SlotPrompts:
    """Token ids of the aligner's input for one processor; no chat prefix, which would shift times
    by some 90 ms."""

    def __init__(self, processor: Qwen3ASRProcessor, num_labels: int):
        tokenizer = processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self.processor, self.num_labels = processor, num_labels
        self.class_seconds = processor.timestamp_segment_time / 1000
        self.slot_id, self.pad_id = ids(SLOT), tokenizer.pad_token_id
        self._audio = [ids(f"<|audio_{part}|>") for part in ("start", "pad", "end")]
        self._tokenizer = tokenizer

    def units(self, text: str, language: str | None) -> list[str]:
        """See :func:`split_units`; DataError for a text without any."""
        units = split_units(self.processor, text, language)
        if not units:
            raise DataError("the text has no words to align")
        return units

    def ids(self, audio_tokens: int, units: Sequence[str], slots: Sequence[int]) -> list[int]:
        """``<|audio_start|><|audio_pad|>…<|audio_end|>`` and the units with their slots."""
        start, pad, end = self._audio
        text = self._tokenizer(slot_text(units, slots), add_special_tokens=False)["input_ids"]
        return [start, *[pad] * audio_tokens, end, *text]

    def labels(self, ids: Sequence[int], times: Sequence[Times], slots: Sequence[int]
               ) -> list[int]:
        """For each id the class of its time, -100 where it is no slot or its time is not known.

        The label of a slot stands at the slot itself: nothing is shifted. DataError for a time
        beyond the last class.
        """
        classes = iter([self.time_class(time) for pair, count in zip(times, slots, strict=True)
                        for time in pair[:count]])
        return [next(classes) if token == self.slot_id else IGNORE for token in ids]

    def time_class(self, seconds: float | None) -> int:
        """The class nearest to a time; -100 for None."""
        if seconds is None:
            return IGNORE
        nearest = math.floor(seconds / self.class_seconds + 0.5)
        if nearest >= self.num_labels:
            raise DataError(f"a word at {seconds:.2f} s; the model's {self.num_labels} classes end "
                            f"at {self.num_labels * self.class_seconds:g} s")
        return nearest


def slot_text(units: Sequence[str], slots: Sequence[int]) -> str:
    """Units with their slots; those without one between them as they are written."""
    parts, run = [], []
    for unit, count in zip(units, slots, strict=True):
        run.append(unit)
        if count:
            parts.append(join_texts(run) + SLOT * count)
            run = []
    return "".join([*parts, join_texts(run)])


def unit_times(processor: Qwen3ASRProcessor, units: Sequence[str], words: Sequence) -> list[Times]:
    """Times of units from a record's ``words`` ``[word, start, end]`` (s; null: not known).

    A word may hold several units (Chinese words of a teacher: the times between are not known) or a
    part of one. Raises DataError for words that are not those of the text, and for times that run
    backwards.
    """
    starts, ends, letters = {}, {}, []
    for row in words:
        word, start, end = _checked(row)
        # the default rules: no tokeniser is needed to drop what is no letter
        kept = [c.lower() for c in "".join(processor.split_words_for_alignment(word))]
        if not kept:
            continue
        starts[len(letters)] = start
        letters += kept
        ends[len(letters)] = end
    wanted = [c.lower() for unit in units for c in unit]
    if letters != wanted:
        place = next((i for i, pair in enumerate(zip(letters, wanted, strict=False))
                      if pair[0] != pair[1]), min(len(letters), len(wanted)))
        raise DataError(f"'words' are not those of the text, from '{''.join(letters[place:])[:20]}'"
                        f" / '{''.join(wanted[place:])[:20]}' on")
    bounds = [0, *accumulate(len(unit) for unit in units)]
    return [(starts.get(first), ends.get(last)) for first, last in pairwise(bounds)]


def _checked(row: object) -> tuple[str, float | None, float | None]:
    """A row of ``words``; DataError for anything else."""
    if not (isinstance(row, list | tuple) and len(row) == 3 and isinstance(row[0], str) and all(
            time is None or (isinstance(time, int | float) and not isinstance(time, bool))
            for time in row[1:])):
        raise DataError(f"'words': {str(row)[:60]} is not [word, start s, end s]")
    word, start, end = row
    known = [time for time in (start, end) if time is not None]
    if any(not math.isfinite(time) or time < 0 for time in known) or known != sorted(known):
        raise DataError(f"'words': {word!r} from {start} to {end} s")
    return word, start, end


def draw_slots(options: SlotOptions, text: str, units: Sequence[str], times: Sequence[Times],
               rng: np.random.Generator) -> list[int]:
    """How many slots are behind each unit of a training sample; at least one in all."""
    kind = rng.random()
    if kind < options.all_share:
        return [BOTH] * len(units)
    if kind < options.all_share + options.sentence_share:
        ends = sorted({*group_ends(text, units), *_pauses(times, options.sentence_pause)})
        return group_slots(ends)
    drawn = rng.random(len(units))
    slots = [BOTH if x < options.both_share else
             START if x < options.both_share + options.start_share else NONE for x in drawn]
    if not any(slots):
        slots[int(rng.integers(len(slots)))] = BOTH
    return slots


def group_slots(ends: Sequence[int]) -> list[int]:
    """Slots that ask for the first start and the last end of groups of units; ``ends``: the number
    of units up to the end of each group."""
    slots = [NONE] * ends[-1]
    for first, end in pairwise([0, *ends]):
        slots[first] = START
        slots[end - 1] = BOTH
    return slots


def group_ends(text: str, units: Sequence[str], level: str = "sentence") -> list[int]:
    """Units up to the end of each sentence (or ``paragraph``: an empty line) of ``text``."""
    return [end for _, end in text_groups(text, units, level)]


def text_groups(text: str, units: Sequence[str], level: str) -> list[tuple[str, int]]:
    """Sentences or paragraphs as they are written, and how many units there are up to their ends.
    """
    pieces = (_SENTENCE_END if level == "sentence" else _PARAGRAPH_END).split(text)
    unit_ends, place, done, open_text, groups = list(accumulate(map(len, units))), 0, 0, [], []
    for piece in pieces:
        place += sum(map(is_letter, piece))
        before = done
        while done < len(units) and unit_ends[done] <= place:
            done += 1
        if done > before:
            groups.append((join_texts([*open_text, piece]), done))
            open_text = []
        elif piece.strip():  # without letters, or it ends inside a unit
            open_text.append(piece)
    if open_text and groups:
        groups[-1] = (join_texts([groups[-1][0], *open_text]), groups[-1][1])
    return groups


def is_letter(character: str) -> bool:
    """What units consist of: letters, numbers and apostrophes (``_is_kept_char`` of transformers'
    ``processing_qwen3_asr``; hanzi are letters)."""
    return character == "'" or unicodedata.category(character)[0] in "LN"


def _pauses(times: Sequence[Times], seconds: float) -> list[int]:
    """Units up to each pause of at least ``seconds``."""
    return [i for i, ((_, end), (start, _)) in enumerate(pairwise(times), start=1)
            if end is not None and start is not None and start - end >= seconds]
