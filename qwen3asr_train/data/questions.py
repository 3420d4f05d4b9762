"""Audio understanding: some training samples ask about the audio instead of what is said in it.

The 10 % of AuT's pretraining that are no ASR (Qwen3-Omni report) come in two ways. A record may be
a question by itself, with ``task`` "question", the question under ``meta.question`` and the answer
as ``text``. And :class:`Questions` makes them from what records of speech and sounds tell anyway:
their language, the kind of sound, the number of speakers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from qwen3asr_train.errors import UserError

QUESTION_TASK = "question"


class Questions:
    """Draws questions with probability ``share`` for records that can answer one.

    ``ways``: record field (``language``, ``meta.sound`` …) -> ways to ask for it; the field's value
    is the answer.
    """

    def __init__(self, share: float = 0.0, ways: Mapping[str, Sequence[str]] | None = None):
        self.share, self.ways = share, dict(ways or {})
        if self.share and not self.ways:
            raise UserError(f"questions.share={share}, and questions.ways has no question")

    def ask(self, record: dict, rng: np.random.Generator) -> tuple[str, str] | None:
        """``(question, answer)`` about the record, or None to transcribe it."""
        if record.get("task") == QUESTION_TASK:
            return (record.get("meta") or {}).get("question") or "", record["text"]
        if not self.share or rng.random() >= self.share:
            return None
        answers = {field: value for field in self.ways
                   if (value := _field(record, field)) is not None}
        if not answers:
            return None
        field = list(answers)[int(rng.integers(len(answers)))]
        return str(rng.choice(list(self.ways[field]))), str(answers[field])


def _field(record: dict, path: str) -> object:
    """The value at a dotted path, None where there is none."""
    value: object = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
