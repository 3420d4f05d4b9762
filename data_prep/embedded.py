"""The embedded corpus: speech made on the spot, so that every stage runs with no data at hand.

    python -m data_prep.embedded --out shards/embedded --languages English Chinese

Sentences come from small closed grammars (:mod:`data_prep.sentences`), voices from espeak-ng
(:mod:`data_prep.espeak`). Validation and test hold sentences *and* voice variants that training
never uses; which sentence goes where follows from a hash of its text. On request some samples are
two voices that take turns, hold a name of several spellings, are sounds (:mod:`data_prep.sounds`)
or many clips joined. A corpus lies in a folder named by the hash of its config and is checked
when it is used; a damaged one is made again.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from data_prep.espeak import INTELLIGIBLE_VARIANTS, Espeak, EspeakNotInstalled
from data_prep.samples import usable_cores
from data_prep.sentences import (
    DOMAINS,
    LANGUAGES,
    SpelledSentence,
    named_languages,
    sentence,
    spelled_sentence,
    vocabulary,
)
from data_prep.sounds import KINDS, make_sound
from qwen3asr_train.data.audio import SAMPLE_RATE, decode, encode, to_mono_16k
from qwen3asr_train.data.augment_join import concatenate
from qwen3asr_train.data.plan import sample_rng, sample_seed
from qwen3asr_train.data.shards import ShardWriter, read_summary
from qwen3asr_train.errors import DataError, UserError

VERSION = 8
"""Part of the hash: raise it when the same config would make other samples."""

SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.2  # of the sentences; a third of them for validation
_SHARD_SAMPLES = 250
_LETTER_SECONDS = (0.06, 0.25)  # of a letter and of a hanzi: text lies among speech of its length
_TEXT_NAMES = 0.9  # share of names among the words behind the first
_SOUND_SECONDS = (0.6, 3.0)
_BABBLE_SHARE = 0.1  # of the sounds: many voices at once
_BABBLE_VOICES = (6, 10)


@dataclass(frozen=True)
class Corpus:
    """What the corpus holds; see configs/data/embedded.yaml."""

    languages: tuple[str, ...] = ("English", "Chinese")
    domains: tuple[str, ...] = DOMAINS
    train_samples: int = 12000
    validation_samples: int = 100
    test_samples: int = 400
    sentences: tuple[int, int] = (1, 1)
    pause_seconds: tuple[float, float] = (0.0, 0.0)
    sound_share: float = 0.0
    conversation_share: float = 0.0
    entity_share: float = 0.0
    text_share: float = 0.0
    text_words: tuple[int, int] = (2, 3)
    joined_clips: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (fewest, most) in (("sentences", self.sentences),
                                     ("text_words", self.text_words)):
            if not 1 <= fewest <= most:
                raise UserError(f"data.corpus.{name}={[fewest, most]}: fewest and most")
        if not 0 <= self.pause_seconds[0] <= self.pause_seconds[1]:
            raise UserError(f"data.corpus.pause_seconds={list(self.pause_seconds)}: shortest and "
                            "longest")
        shares = self.sound_share, self.conversation_share, self.text_share
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError("data.corpus.sound_share, conversation_share and text_share: between 0 "
                            "and 1, also together")
        if self.joined_clips < 1 or (self.joined_clips > 1 and self.text_share):
            raise UserError(f"data.corpus.joined_clips={self.joined_clips}: at least 1, "
                            "and 1 where there is text alone")
        if not 0 <= self.entity_share <= 1:
            raise UserError(f"data.corpus.entity_share={self.entity_share}: between 0 and 1")
        for kind, given, known in (("languages", self.languages, LANGUAGES),
                                   ("domains", self.domains, DOMAINS)):
            if not given or set(given) - set(known):
                raise UserError(f"data.corpus.{kind}={list(given)}: choose from {list(known)}")

    def digest(self) -> str:
        """Twelve hex digits that name this corpus."""
        text = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def voices(split: str) -> tuple[str, ...]:
    """The voice variants of a split: every fifth is held out, for test and validation alike."""
    held_out = INTELLIGIBLE_VARIANTS[::5]
    return tuple(v for v in INTELLIGIBLE_VARIANTS if (v in held_out) == (split != "train"))


def split_of(text: str) -> str:
    """The split that a sentence belongs to, from its text alone."""
    place = sample_seed(0, 0, text) / 2**64
    if place >= HELD_OUT_SHARE:
        return "train"
    return "validation" if place < HELD_OUT_SHARE / 3 else "test"


def draw_sentence(language: str, split: str, domains: tuple[str, ...],
                  rng: np.random.Generator) -> tuple[str, str]:
    """``(text, domain)`` of a sentence of this split, domains in equal shares."""
    domain = str(rng.choice(domains))
    while True:
        text = sentence(language, domain, rng)
        if split_of(text) == split:
            return text, domain


def draw_spelled(language: str, split: str, rng: np.random.Generator) -> SpelledSentence | None:
    """A sentence that is said in this split alone, or whose name of all its parts is."""
    while True:
        spelled = spelled_sentence(language, rng)
        if spelled is None or split_of(spelled.rare) == split:
            return spelled


def make_sample(corpus: Corpus, split: str, number: int) -> tuple[str, dict, bytes | None]:
    """Key, record and wav bytes (None: text alone) of one sample; a pure function of its
    arguments."""
    if corpus.joined_clips > 1:
        return _joined(corpus, split, number)
    rng = sample_rng(corpus.seed, 0, f"{split}/{number}")
    place = sample_seed(corpus.seed, 0, f"{split}/{number}/kind") / 2**64
    if place < corpus.sound_share:
        record, waveform = _sound(corpus, split, rng)
    else:
        language = corpus.languages[number % len(corpus.languages)]
        spoken_share = corpus.sound_share + corpus.conversation_share
        if spoken_share <= place < spoken_share + corpus.text_share:
            return f"{split}-{number:06d}", _text(corpus, split, language, rng), None
        speakers = 2 if place < corpus.sound_share + corpus.conversation_share else 1
        record, waveform = speech(corpus, split, language, speakers, rng)
    record |= {"source": "embedded", "duration": round(len(waveform) / SAMPLE_RATE, 4)}
    # wav: decoding costs nothing, and the corpus is small
    return f"{split}-{number:06d}", record, encode(np.clip(waveform, -1, 1), "wav")


def _joined(corpus: Corpus, split: str, number: int) -> tuple[str, dict, bytes]:
    """Clips of one language one after the other: those that a corpus of single ones would hold."""
    single, languages = replace(corpus, joined_clips=1), len(corpus.languages)
    block, language = divmod(number, languages)
    clips = [make_sample(single, split, (block * corpus.joined_clips + i) * languages + language)
             for i in range(corpus.joined_clips)]
    record, waveform = concatenate(
        [(record, decode(audio, name=key)) for key, record, audio in clips],
        sample_rng(corpus.seed, 0, f"{split}/{number}/pauses"), corpus.pause_seconds)
    return f"{split}-{number:06d}", record, encode(waveform, "wav")


@cache
def _speaker() -> Espeak:
    """One a process: looking through espeak-ng's voices takes longer than a sentence."""
    return Espeak()


def speech(corpus: Corpus, split: str, language: str, speakers: int, rng: np.random.Generator
            ) -> tuple[dict, np.ndarray]:
    """One sentence or several, with ``speakers`` voices that take turns."""
    fewest, most = corpus.sentences
    count = max(speakers, int(rng.integers(fewest, most + 1)) if most > 1 else 1)
    spelled = draw_spelled(language, split, rng) \
        if corpus.entity_share and rng.random() < corpus.entity_share else None
    spelled_place = int(rng.integers(count)) if spelled else -1
    texts, words, waveforms, domains, turns, start = [], [], [], [], [], 0.0
    for number in range(count):
        text, domain = (spelled.text, "spellings") if number == spelled_place else \
            draw_sentence(language, split, corpus.domains, rng)
        if number < speakers:
            left = [v for v in voices(split) if v not in {turn["variant"] for turn in turns}]
            turns.append({"variant": str(rng.choice(left)), "rate": int(rng.integers(140, 211)),
                          "pitch": int(rng.integers(30, 71)),
                          "pitch_range": int(rng.integers(30, 71))})
        said = spelled.said if number == spelled_place else text
        speech = _speaker().synthesize(said, LANGUAGES[language].espeak, **turns[number % speakers])
        waveform = to_mono_16k(speech.waveform.astype(np.float32) / 32768, speech.rate)
        if number and corpus.pause_seconds[1]:
            pause = np.zeros(int(rng.uniform(*corpus.pause_seconds) * SAMPLE_RATE), np.float32)
            waveforms.append(pause)
            start += len(pause) / SAMPLE_RATE
        # a name's spellings have as many words (hanzi) as what was said
        written = text.split() if LANGUAGES[language].spaced else text
        words += [[word, round(start + a, 4), round(start + b, 4)]
                  for word, (_, a, b) in zip(written, speech.words, strict=True)]
        start += len(waveform) / SAMPLE_RATE
        texts.append(text)
        waveforms.append(waveform)
        domains.append(domain)
    meta = {"speakers": speakers, **turns[0]}
    if len(set(domains)) == 1:
        meta["domain"] = domains[0]
    record = {"text": LANGUAGES[language].joiner.join(texts), "language": language, "task": "asr",
              "words": words, "meta": meta}
    if spelled:
        record["entities"] = [spelled.entity]
        meta["sounds_like"] = list(spelled.others)
    return record, np.concatenate(waveforms)


@cache
def _words(language: str, domains: tuple[str, ...]) -> list[str]:
    """The words of a language, in an order that is always the same."""
    return sorted(vocabulary(language, domains))


def _text(corpus: Corpus, split: str, language: str, rng: np.random.Generator) -> dict:
    """Words in any order, in place of audio; among them, if the speech has names of several
    spellings, such names, which are there as they are said.

    Nothing but the place that one has come to in the input tells what comes next. So that is
    learned much sooner than from sentences, which can be guessed in part.
    """
    words = _words(language, corpus.domains)
    named = corpus.entity_share > 0 and language in named_languages()
    names, written, said = [], [], []
    for _ in range(int(rng.integers(corpus.text_words[0], corpus.text_words[1] + 1))):
        if named and written and rng.random() < _TEXT_NAMES:  # not first, as in sentences
            names.append(draw_spelled(language, split, rng))
            written.append(names[-1].entity)
            said.append(names[-1].said_entity)
        else:
            written.append(str(rng.choice(words)))
            said.append(written[-1])
    joiner = LANGUAGES[language].joiner
    spoken = joiner.join(said)
    record = {"text": joiner.join(written), "spoken": spoken, "language": language, "task": "text",
              "source": "embedded",
              "duration": round(_LETTER_SECONDS[not LANGUAGES[language].spaced] * len(spoken), 4)}
    if names:
        record |= {"entities": list(dict.fromkeys(name.entity for name in names)),
                   "meta": {"sounds_like": [other for name in names for other in name.others]}}
    return record


def _sound(corpus: Corpus, split: str, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
    """Anything but speech that can be made out."""
    if rng.random() < _BABBLE_SHARE:
        kind, waveform = "babble", _babble(corpus, split, rng)
    else:
        kind = str(rng.choice(list(KINDS)))
        waveform = make_sound(kind, rng.uniform(*_SOUND_SECONDS), rng)
    return {"text": "", "language": None, "task": "nonspeech", "meta": {"sound": kind}}, waveform


def _babble(corpus: Corpus, split: str, rng: np.random.Generator) -> np.ndarray:
    """Many voices at once, equally loud, each of them beginning somewhere in its sentence."""
    single = replace(corpus, sentences=(2, 2), conversation_share=0.0, entity_share=0.0)
    mixed = np.zeros(int(rng.uniform(*_SOUND_SECONDS) * SAMPLE_RATE), dtype=np.float32)
    for _ in range(int(rng.integers(_BABBLE_VOICES[0], _BABBLE_VOICES[1] + 1))):
        _, waveform = speech(single, split, str(rng.choice(corpus.languages)), 1, rng)
        waveform = np.roll(np.resize(waveform, len(mixed)), int(rng.integers(len(mixed))))
        mixed += waveform / max(1e-6, float(np.sqrt(np.mean(waveform ** 2))))
    return mixed * (rng.uniform(0.2, 0.7) / max(1e-6, float(np.abs(mixed).max())))


def _write_shard(corpus: Corpus, split: str, folder: Path, shard: int, samples: range) -> int:
    with ShardWriter(folder, first=shard, max_samples=_SHARD_SAMPLES) as writer:
        for number in samples:
            key, record, audio = make_sample(corpus, split, number)
            writer.write(key, record, audio, audio and "wav")
    return len(samples)


def make_corpus(corpus: Corpus, folder: Path, workers: int | None = None) -> None:
    """Write ``folder/{train,validation,test}``; UserError when espeak-ng is not installed."""
    try:
        Espeak()
    except EspeakNotInstalled as error:
        raise UserError(f"{error}, or name your own data: data.train=SHARDS") from error
    counts = dict(zip(SPLITS, (corpus.train_samples, corpus.validation_samples,
                               corpus.test_samples), strict=True))
    jobs = [(split, folder / split, start // _SHARD_SAMPLES,
             range(start, min(start + _SHARD_SAMPLES, count)))
            for split, count in counts.items() for start in range(0, count, _SHARD_SAMPLES)]
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar, \
            ProcessPoolExecutor(workers or usable_cores()) as pool:
        task = bar.add_task("making embedded speech", total=sum(counts.values()))
        for done in [pool.submit(_write_shard, corpus, *job) for job in jobs]:
            bar.advance(task, done.result())


def ensure_corpus(corpus: Corpus, cache_dir: str | Path) -> dict[str, str]:
    """The corpus's split folders under ``cache_dir``, made first if absent or damaged."""
    folder = Path(cache_dir).expanduser() / f"embedded-{corpus.digest()}"
    ensure_folder(folder, lambda partial: make_corpus(corpus, partial))
    return {split: str(folder / split) for split in SPLITS if (folder / split).is_dir()}


def ensure_folder(folder: Path, make: Callable[[Path], None]) -> None:
    """A folder of shards that ``make`` writes, made first if absent or damaged."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # several ranks may start at once: one makes it, the others wait
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_whole(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        for stale in folder.parent.glob(f"{folder.name}.partial-*"):  # of killed processes
            shutil.rmtree(stale, ignore_errors=True)
        partial = folder.with_suffix(f".partial-{os.getpid()}")
        try:
            make(partial)
            (partial / "corpus.json").write_text(json.dumps(_fingerprint(partial)))
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether every shard of a finished corpus is there, with the bytes it was written with."""
    try:
        return json.loads((folder / "corpus.json").read_text()) == _fingerprint(folder)
    except (OSError, ValueError, DataError, UserError):
        return False


def _fingerprint(folder: Path) -> dict[str, str]:
    """Relative shard path -> checksum. The whole corpus is read; it is a few hundred MB at most."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    digests = {}
    for shard in sorted(folder.rglob("*.tar")):
        read_summary(shard)
        with open(shard, "rb") as file:
            digests[str(Path(shard).relative_to(folder))] = hashlib.file_digest(
                file, "blake2b").hexdigest()[:16]
    return digests


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the three splits")
    parser.add_argument("--languages", nargs="+", default=list(Corpus.languages))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--train-samples", type=int, default=Corpus.train_samples)
    parser.add_argument("--validation-samples", type=int, default=Corpus.validation_samples)
    parser.add_argument("--test-samples", type=int, default=Corpus.test_samples)
    parser.add_argument("--sentences", type=int, nargs=2, default=(1, 1), metavar="N",
                        help="in a sample, fewest and most (default: 1 1)")
    parser.add_argument("--pause-seconds", type=float, nargs=2, default=(0.0, 0.0), metavar="S",
                        help="between the sentences of a sample (default: 0 0)")
    parser.add_argument("--sound-share", type=float, default=0.0, metavar="SHARE",
                        help="of the samples: sounds without speech (default: %(default)s)")
    parser.add_argument("--conversation-share", type=float, default=0.0, metavar="SHARE",
                        help="of the samples: two voices, one after the other")
    parser.add_argument("--entity-share", type=float, default=0.0, metavar="SHARE",
                        help="of the speech: a name of several spellings, listed in `entities`")
    parser.add_argument("--text-share", type=float, default=0.0, metavar="SHARE",
                        help="of the samples: text alone, with words in place of audio")
    parser.add_argument("--text-words", type=int, nargs=2, default=Corpus.text_words, metavar="N",
                        help="in a sample of text, fewest and most (default: 2 3)")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    folder = options.pop("out")
    try:
        make_corpus(Corpus(**{k: tuple(v) if isinstance(v, list) else v
                              for k, v in options.items()}), folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}/{{{','.join(SPLITS)}}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
