"""The embedded corpus of all modalities: pictures, films, sounds, speech and text.

Sources, each a folder of shards: ``text``, ``speech``, ``long_speech``, ``sounds`` (captions of
audio), ``captions`` and ``questions`` (about pictures), ``words`` (printed ones to read),
``spoken_questions`` (a picture and a question in speech), ``films`` and ``sounding_films``
(captions of and questions about these). Test holds sentences, voices, scenes and motions that
training never has; which scene or motion goes where follows from a hash of its caption.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from data_prep import embedded, films, pictures
from data_prep.espeak import Espeak, EspeakNotInstalled
from data_prep.samples import usable_cores
from data_prep.sentences import LANGUAGES, vocabulary
from data_prep.sounds import KINDS, make_sound
from qwen3asr_train.data.audio import SAMPLE_RATE, encode, to_mono_16k
from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.data.shards import ShardWriter
from qwen3asr_train.errors import UserError

VERSION = 4
"""Part of the hash: raise it when the same config would make other samples."""

SPLITS = ("train", "test")
PICTURES_ALONE = ("captions", "questions", "words")
"""Sources that cost next to nothing to make."""

_SHARD_SAMPLES = 500
_WORD_LETTERS = (3, 7)  # of printed words
_SOUNDS = tuple(kind for kind in KINDS if kind not in ("beeps", "silence", "noise"))
_HIGH_VOICES = frozenset({"f1", "f2", "f3", "f4", "f5", "Annie", "belinda", "grandma", "linda",
                          "shelby", "steph"})
"""Their own pitch is 178 to 232 Hz, that of the others 87 to 148 Hz."""

_PITCHES = {"low": (0, 31), "high": (50, 100)}  # of the others 61 to 125 Hz, of these 178 to 408 Hz
_RATES = {"slow": (95, 115), "fast": (240, 280)}


@dataclass(frozen=True)
class OmniCorpus:
    """What the corpus holds; see configs/data/embedded_omni.yaml."""

    languages: tuple[str, ...] = ("English",)
    train_samples: int = 3000
    picture_factor: int = 4
    test_samples: int = 60
    long_sentences: tuple[int, int] = (3, 6)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.languages or set(self.languages) - set(LANGUAGES):
            raise UserError(f"data.corpus.languages={list(self.languages)}: choose from "
                            f"{list(LANGUAGES)}")
        if self.picture_factor < 1:
            raise UserError(f"data.corpus.picture_factor={self.picture_factor}: at least 1")

    def samples(self, source: str, split: str) -> int:
        """How many a source has."""
        if split == "test":
            return self.test_samples
        return self.train_samples * (self.picture_factor if source in PICTURES_ALONE else 1)

    def digest(self) -> str:
        """Twelve hex digits that name this corpus."""
        text = json.dumps([VERSION, embedded.VERSION, asdict(self)], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:12]

    def speech(self, sentences: tuple[int, int] = (1, 1)) -> embedded.Corpus:
        """The embedded speech that this one's speech is."""
        return embedded.Corpus(languages=self.languages, seed=self.seed, sentences=sentences,
                               pause_seconds=(0.1, 0.5) if sentences[1] > 1 else (0.0, 0.0))


class Sample(NamedTuple):
    """Record, waveform at 16 kHz, picture and frames of a film (PNG)."""

    record: dict
    waveform: np.ndarray | None = None
    picture: bytes | None = None
    frames: tuple[bytes, ...] = ()


def make_sample(corpus: OmniCorpus, source: str, split: str, number: int) -> Sample:
    """One sample; a pure function of its arguments."""
    rng = sample_rng(corpus.seed, 0, f"{source}/{split}/{number}")
    sample = SOURCES[source](corpus, split, number, rng)
    more = {"source": f"embedded/{source}"}
    if sample.waveform is not None:
        more["duration"] = round(len(sample.waveform) / SAMPLE_RATE, 4)
    return sample._replace(record=sample.record | more)


def _text(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    """Sentences of the speech, what there is to say of pictures, and questions with answers."""
    kind = number % 3
    if kind == 0:
        language = corpus.languages[int(rng.integers(len(corpus.languages)))]
        text, _ = embedded.draw_sentence(language, split, corpus.speech().domains, rng)
    else:
        scene = _scene(split, rng)
        question, answer = scene.questions[int(rng.integers(len(scene.questions)))]
        text = scene.caption if kind == 1 else f"{scene.caption}; {question}? {answer}"
    return Sample({"text": text, "task": "text"})


def _speech(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    return _spoken(corpus.speech(), split, number)


def _long_speech(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    return _spoken(corpus.speech(corpus.long_sentences), split, number)


def _spoken(corpus: embedded.Corpus, split: str, number: int) -> Sample:
    language = corpus.languages[number % len(corpus.languages)]
    rng = sample_rng(corpus.seed, 1, f"{split}/{number}/{corpus.sentences}")
    record, waveform = embedded.speech(corpus, split, language, 1, rng)
    return Sample(record, np.clip(waveform, -1, 1))


def _sounds(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    """A voice of some height and speed, a kind of sound, or so many beeps."""
    kind = number % 3
    if kind == 0:
        height, speed = str(rng.choice(list(_PITCHES))), str(rng.choice(list(_RATES)))
        text, _ = embedded.draw_sentence("English", split, corpus.speech().domains, rng)
        voices = [v for v in embedded.voices(split) if (v in _HIGH_VOICES) == (height == "high")]
        waveform = _say(text, voices, rng, pitch=int(rng.integers(*_PITCHES[height])),
                        rate=int(rng.integers(*_RATES[speed])), pitch_range=40)
        caption = f"a {height} voice that speaks {'fast' if speed == 'fast' else 'slowly'}"
    elif kind == 1:
        name = str(rng.choice(_SOUNDS))
        waveform, caption = make_sound(name, rng.uniform(1.0, 2.0), rng), f"the sound of {name}"
    else:
        count = int(rng.integers(1, 5))
        waveform = _beeps(count, rng)
        caption = _counted(count)
    return Sample({"text": caption, "task": "audio_caption"}, waveform)


def _counted(beeps: int) -> str:
    return f"{pictures.NUMBERS[beeps - 1]} beep{'s' if beeps > 1 else ''}"


def _beeps(count: int, rng: np.random.Generator) -> np.ndarray:
    pitch, long, pause = rng.uniform(500, 2000), rng.uniform(0.12, 0.2), rng.uniform(0.15, 0.3)
    tone = np.sin(2 * np.pi * pitch * np.arange(int(long * SAMPLE_RATE)) / SAMPLE_RATE)
    gap = np.zeros(int(pause * SAMPLE_RATE))
    waveform = np.concatenate([gap, *[part for _ in range(count) for part in (tone, gap)]])
    return (rng.uniform(0.1, 0.6) * waveform).astype(np.float32)


def _captions(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    scene = _scene(split, rng)
    return Sample({"text": scene.caption, "task": "image_caption"},
                  picture=pictures.draw(scene, rng))


def _questions(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    scene, question, answer = _asked(split, rng)
    return Sample({"text": answer, "question": question, "task": "visual_question"},
                  picture=pictures.draw(scene, rng))


def _spoken_questions(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator
                      ) -> Sample:
    scene, question, answer = _asked(split, rng)
    waveform = _say(question, embedded.voices(split), rng, pitch=int(rng.integers(30, 71)),
                    rate=int(rng.integers(140, 211)), pitch_range=int(rng.integers(30, 71)))
    return Sample({"text": answer, "question": question, "task": "spoken_question"}, waveform,
                  pictures.draw(scene, rng))


def _words(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    """Test has words of training in other pictures: reading unseen words needs more words."""
    scene = pictures.printed(str(rng.choice(_printable())))
    return Sample({"text": scene.caption, "task": "ocr"}, picture=pictures.draw(scene, rng))


def _films(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator) -> Sample:
    """Captions and questions in turn."""
    shown = _motion(split, rng)
    frames, times = films.draw(shown, rng)
    record = {"text": shown.caption, "task": "film_caption"}
    if number % 2:
        question, answer = shown.questions[int(rng.integers(len(shown.questions)))]
        record = {"text": answer, "question": question, "task": "film_question"}
    return Sample(record | {"frame_times": times}, frames=tuple(frames))


def _sounding_films(corpus: OmniCorpus, split: str, number: int, rng: np.random.Generator
                    ) -> Sample:
    """Films with so many beeps: captions of both, and questions about either, in turn."""
    shown, count = _motion(split, rng), int(rng.integers(1, 5))
    frames, times = films.draw(shown, rng)
    record = {"text": f"{shown.caption} with {_counted(count)}", "task": "film_with_sound"}
    if number % 2:
        questions = (*shown.questions, ("how many beeps are there", pictures.NUMBERS[count - 1]))
        question, answer = questions[int(rng.integers(len(questions)))]
        record = {"text": answer, "question": question, "task": "film_with_sound_question"}
    return Sample(record | {"frame_times": times}, _beeps(count, rng), frames=tuple(frames))


def _motion(split: str, rng: np.random.Generator) -> films.Motion:
    """A motion of this split."""
    while True:
        shown = films.motion(rng)
        if embedded.split_of(shown.caption) == split:
            return shown


@cache
def _printable() -> tuple[str, ...]:
    words = (word for word in sorted(vocabulary("English")) if word.isascii() and word.isalpha())
    return tuple(w for w in words if _WORD_LETTERS[0] <= len(w) <= _WORD_LETTERS[1])


def _scene(split: str, rng: np.random.Generator) -> pictures.Scene:
    """A scene of this split; validation's belong to nobody."""
    make = pictures.SCENES[int(rng.integers(len(pictures.SCENES)))]
    while True:
        scene = make(rng)
        if embedded.split_of(scene.caption) == split:
            return scene


def _asked(split: str, rng: np.random.Generator) -> tuple[pictures.Scene, str, str]:
    scene = _scene(split, rng)
    return scene, *scene.questions[int(rng.integers(len(scene.questions)))]


@cache
def _speaker() -> Espeak:
    return Espeak()


def _say(text: str, voices: Sequence[str], rng: np.random.Generator, **voice: int) -> np.ndarray:
    """English speech with one of the voices."""
    said = _speaker().synthesize(text, LANGUAGES["English"].espeak,
                                 variant=str(rng.choice(voices)), **voice)
    waveform = to_mono_16k(said.waveform.astype(np.float32) / 32768, said.rate)
    return np.clip(waveform, -1, 1)


SOURCES = {"text": _text, "speech": _speech, "long_speech": _long_speech, "sounds": _sounds,
           "captions": _captions, "questions": _questions, "words": _words,
           "spoken_questions": _spoken_questions, "films": _films,
           "sounding_films": _sounding_films}


def _write_shard(corpus: OmniCorpus, source: str, split: str, folder: Path, samples: range) -> int:
    with ShardWriter(folder, first=samples.start // _SHARD_SAMPLES,
                     max_samples=_SHARD_SAMPLES) as writer:
        for number in samples:
            sample = make_sample(corpus, source, split, number)
            audio = None if sample.waveform is None else encode(sample.waveform, "wav")
            writer.write(f"{source}-{split}-{number:06d}", sample.record, audio, audio and "wav",
                         image=sample.picture, frames=sample.frames)
    return len(samples)


def make_corpus(corpus: OmniCorpus, folder: Path, workers: int | None = None) -> None:
    """Write ``folder/{train,test}/SOURCE``; UserError when espeak-ng is not installed."""
    try:
        Espeak()
    except EspeakNotInstalled as error:
        raise UserError(f"{error}, or name your own data: data.sources.NAME.train=SHARDS") \
            from error
    jobs = []
    for split, source in product(SPLITS, SOURCES):
        count = corpus.samples(source, split)
        jobs += [(source, split, folder / split / source,
                  range(start, min(start + _SHARD_SAMPLES, count)))
                 for start in range(0, count, _SHARD_SAMPLES)]
    with Progress(console=Console(stderr=True), transient=True) as bar, \
            ProcessPoolExecutor(workers or usable_cores()) as pool:
        task = bar.add_task("making embedded pictures, films, sounds and speech",
                            total=sum(len(job[-1]) for job in jobs))
        for done in [pool.submit(_write_shard, corpus, *job) for job in jobs]:
            bar.advance(task, done.result())


def ensure_corpus(corpus: OmniCorpus, cache_dir: str | Path) -> dict[str, dict[str, str]]:
    """Split -> source -> folder under ``cache_dir``, made first if absent or damaged."""
    folder = Path(cache_dir).expanduser() / f"embedded-omni-{corpus.digest()}"
    embedded.ensure_folder(folder, lambda partial: make_corpus(corpus, partial))
    return {split: {source: str(folder / split / source) for source in SOURCES}
            for split in SPLITS}
