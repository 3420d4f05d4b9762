"""Speech with exact word times from espeak-ng, through its C API (``speak_lib.h`` of 1.52).

espeak-ng carries state from one utterance to the next: the phase of the wave, the pitch-flutter
table, the gain control and the noise generator. The same sentence therefore comes out a little
different every time, and re-seeding (``espeak_ng_SetRandSeed``) or re-initialising resets only
part of it. So the library is loaded afresh for every utterance and unloaded after it, which
costs about 2 ms and makes the samples a pure function of the arguments. It also leaves nothing
behind that a forked worker could inherit half-initialised.
"""

import _ctypes
import ctypes
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

# Variants measured to speak at the usual length (within 10 %), level (within 6 dB) and voicing in
# English, Chinese and Russian, and to differ from each other in spectrum or pitch. Left out:
# whispers and effects (croak, Demonic, robots), near-duplicates, and those on espeak's klatt6
# synthesiser, whose noise is libc's process-wide rand().
INTELLIGIBLE_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("Andy", "Annie", "Denis", "Diogo", "Gene", "Lee", "Mario", "Michael", "Nguyen"),
    *("belinda", "boris", "edward", "grandma", "gustave", "john", "kaukovalta", "klatt4"),
    *("linda", "marcelo", "max", "michel", "norbert", "pablo", "robert", "sandro", "shelby"),
    *("steph", "travis"),
)

_WAVE_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, in this thread
_PHONEME_EVENTS, _DONT_EXIT = 0x0001, 0x8000  # espeak_Initialize options
_CHARS_UTF8 = 1
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_PARAMETER_LIMITS = {
    "rate": (80, 449),
    "pitch": (0, 99),
    "pitch_range": (0, 100),
    "volume": (1, 200),
}
_PHONEME_SEPARATOR = "·"
_SEED = 20260101

# Scripts written without spaces are timed character by character.
_IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(f"[{_IDEOGRAPH}][^\\w\\s]*|[^\\s{_IDEOGRAPH}]+")


class EspeakNotInstalled(RuntimeError):
    """The espeak-ng shared library is missing or cannot be loaded."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"espeak-ng is not available ({reason}): pip install 'qwen3asr_train[synth]'"
        )


@dataclass(frozen=True)
class Speech:
    """One synthesised utterance.

    waveform: int16, shape ``[samples]``, mono. rate: Hz (22,050 for espeak-ng's own voices).
    words: ``(word, start, end)`` in seconds, in text order, never overlapping. A word is a
    stretch of the text between spaces, punctuation included, or a single hanzi; joined (by
    spaces, or by nothing between hanzi) the words are the text. ``end`` is where the next word or
    a pause begins; the closure of an initial stop belongs to its word, as in forced alignments. A
    word of punctuation alone has no length.
    """

    waveform: np.ndarray
    rate: int
    words: list[tuple[str, float, float]]

    @property
    def duration(self) -> float:
        """Length of the waveform in seconds."""
        return len(self.waveform) / self.rate


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng: ``language`` is what ``Espeak.synthesize`` takes.

    identifier: its file under ``lang``. priority: of several voices of a language, the lowest is
    the one used.
    """

    name: str
    language: str
    identifier: str
    priority: int


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # (priority byte, code, NUL)*, NUL
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Recorder:
    """Collects what the synthesis callback delivers; copies, for espeak reuses its buffers."""

    def __init__(self) -> None:
        self.chunks: list[np.ndarray] = []
        # (index of the character, sample, number of phonemes before it)
        self.words: list[tuple[int, int, int]] = []
        self.phonemes: list[tuple[str, int]] = []  # (name, sample)
        self.callback = _SynthCallback(self._receive)

    def _receive(self, wave, count: int, events) -> int:
        if wave and count > 0:
            self.chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        for event in events:
            if event.type == _EVENT_END_OF_LIST:
                break
            if event.type == _EVENT_WORD:
                self.words.append((event.text_position - 1, event.sample, len(self.phonemes)))
            elif event.type == _EVENT_PHONEME:
                name = event.id.string.decode("utf-8", "replace")
                self.phonemes.append((name, event.sample))
        return 0


def _is_pause(phoneme: str) -> bool:
    return phoneme.startswith("_")


class Espeak:
    """espeak-ng in this process. Several instances, threads and forked workers are fine."""

    _lock = threading.Lock()  # the C library is a singleton

    def __init__(self) -> None:
        """Raises EspeakNotInstalled. Loads nothing yet."""
        try:
            import espeakng_loader
        except ImportError as error:
            raise EspeakNotInstalled("no module espeakng_loader") from error
        self._library_path = espeakng_loader.get_library_path()
        self._data_path = espeakng_loader.get_data_path()

    def voices(self) -> list[Voice]:
        """Every voice, sorted by language code; a voice of two codes is listed twice."""
        found = []
        with self._loaded() as (library, _):
            library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
            for pointer in library.espeak_ListVoices(None):
                if not pointer:
                    break
                voice = pointer.contents
                name, identifier = voice.name.decode(), voice.identifier.decode()
                address = voice.languages
                while priority_and_code := ctypes.string_at(address):
                    priority, code = priority_and_code[0], priority_and_code[1:].decode()
                    found.append(Voice(name, code, identifier, priority))
                    address += len(priority_and_code) + 1
        return sorted(found, key=lambda v: (v.language, v.priority, v.identifier))

    @cached_property
    def _identifiers(self) -> dict[str, str]:
        return {voice.language: voice.identifier for voice in reversed(self.voices())}

    def variants(self) -> list[str]:
        """Names of the voice variants (timbres), as files of ``voices/!v``, sorted."""
        return sorted(self._variants)

    @cached_property
    def _variants(self) -> frozenset[str]:
        folder = Path(self._data_path) / "voices" / "!v"
        return frozenset(path.name for path in folder.iterdir() if path.is_file())

    def synthesize(
        self,
        text: str,
        language: str,
        variant: str | None = None,
        rate: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
        volume: int = 100,
    ) -> Speech:
        """Speaks ``text`` with the voice of ``language`` ("en-us", "cmn", "fr" …).

        rate: words per minute, 80 to 449. pitch, pitch_range: 0 to 99 and 0 to 100, 50 is the
        voice's own. volume: percent, 1 to 200. The same arguments give the same samples, in any
        order of calls and in any process.

        Word times are those of espeak's own word events, to the sample. Where it merges words
        ("out of" and 关上 are single entries of its dictionaries; Korean words in a vowel or
        nasal often have no event), the boundary is the event of the phoneme at which the second
        word starts, counted from the phonemes of each word said alone.

        Raises ValueError: empty or unspeakable text, unknown voice or variant, value out of range.
        """
        given = {"rate": rate, "pitch": pitch, "pitch_range": pitch_range, "volume": volume}
        for name, value in given.items():
            low, high = _PARAMETER_LIMITS[name]
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
        tokens = list(_TOKEN.finditer(text))
        if not tokens:
            raise ValueError("no text to speak")

        voice = self._voice_name(language, variant)
        recorder = _Recorder()
        with self._loaded() as (library, sample_rate):
            _set_voice(library, voice)
            for parameter, value in zip(
                (_RATE, _PITCH, _RANGE, _VOLUME), given.values(), strict=True
            ):
                library.espeak_SetParameter(parameter, value, 0)
            library.espeak_SetSynthCallback(recorder.callback)
            # espeak_Initialize seeds with the time of day.
            library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
            encoded = text.encode()
            status = library.espeak_Synth(
                encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _CHARS_UTF8, None, None
            )
            spoken = any(not _is_pause(name) for name, _ in recorder.phonemes)
            if status or not recorder.chunks or not spoken:
                raise ValueError(f"espeak-ng has nothing to say for {text!r} in {language!r}")
            starts = _word_starts(tokens, recorder, lambda word: len(_phoneme_names(library, word)))
        waveform = np.concatenate(recorder.chunks)
        ends = _word_ends(starts, recorder.phonemes, len(waveform))
        words = [
            (token.group(), start / sample_rate, end / sample_rate)
            for token, start, end in zip(tokens, starts, ends, strict=True)
        ]
        return Speech(waveform, sample_rate, words)

    def phonemes(self, text: str, language: str) -> list[str]:
        """espeak's phoneme names for ``text``, stress marks included: for finding homophones.

        Raises ValueError: unknown voice.
        """
        voice = self._voice_name(language, None)
        with self._loaded() as (library, _):
            _set_voice(library, voice)
            return _phoneme_names(library, text)

    @contextmanager
    def _loaded(self) -> Iterator[tuple[ctypes.CDLL, int]]:
        """A pristine copy of the library and its sample rate (Hz), for one use."""
        with self._lock:
            try:
                library = ctypes.CDLL(self._library_path)
            except OSError as error:
                raise EspeakNotInstalled(str(error)) from error
            try:
                sample_rate = library.espeak_Initialize(
                    _WAVE_SYNCHRONOUS,
                    0,
                    os.fsencode(self._data_path),
                    _PHONEME_EVENTS | _DONT_EXIT,
                )
                if sample_rate <= 0:
                    raise EspeakNotInstalled(f"no usable data in {self._data_path}")
                yield library, sample_rate
            finally:
                library.espeak_Terminate()
                _ctypes.dlclose(library._handle)
            self._check_unloaded()

    def _check_unloaded(self) -> None:
        # Another user of the same file, or a libc whose dlclose does nothing (musl).
        try:
            library = ctypes.CDLL(self._library_path, mode=os.RTLD_NOLOAD)
        except OSError:
            return
        _ctypes.dlclose(library._handle)
        warnings.warn(
            "espeak-ng stays loaded in this process: samples will depend on the order of calls",
            RuntimeWarning,
            stacklevel=5,
        )

    def _voice_name(self, language: str, variant: str | None) -> bytes:
        if language not in self._identifiers:
            raise ValueError(f"no espeak-ng voice {language!r}: see Espeak().voices()")
        # espeak ignores a variant it does not know.
        if variant is not None and variant not in self._variants:
            raise ValueError(f"no espeak-ng variant {variant!r}: see Espeak().variants()")
        # By identifier: espeak opens that file at once. For any other name (and for the few
        # identifiers with capitals) it reads all voices, 2 ms, and leaks 2 kB when unloaded.
        identifier = self._identifiers[language]
        return (identifier if variant is None else f"{identifier}+{variant}").encode()


def _set_voice(library: ctypes.CDLL, voice: bytes) -> None:
    if library.espeak_SetVoiceByName(voice) != 0:
        raise ValueError(f"espeak-ng cannot load its voice {voice.decode()!r}")


def _phoneme_names(library: ctypes.CDLL, text: str) -> list[str]:
    translate = library.espeak_TextToPhonemes
    translate.restype = ctypes.c_char_p
    buffer = ctypes.create_string_buffer(text.encode())
    position = ctypes.c_void_p(ctypes.addressof(buffer))
    names: list[str] = []
    while position:  # one clause a call
        clause = translate(ctypes.byref(position), _CHARS_UTF8, ord(_PHONEME_SEPARATOR) << 8)
        for word in (clause or b"").decode().split():
            names += [
                name for name in word.split(_PHONEME_SEPARATOR) if name and not _is_pause(name)
            ]
    return names


def _word_starts(
    tokens: list[re.Match], recorder: _Recorder, count_phonemes: Callable[[str], int]
) -> list[int]:
    """First sample of every token, from word events and, where one is missing, phoneme events."""
    starts, first_phonemes = {0: 0}, {0: 0, len(tokens): len(recorder.phonemes)}
    latest = -1
    for character, sample, phoneme in recorder.words:
        # Positions after a clause break may fall on the space before the word.
        index = next((i for i, t in enumerate(tokens) if t.end() > character), len(tokens) - 1)
        if index > latest:
            starts[index], first_phonemes[index] = sample, phoneme
            latest = index

    known = sorted(starts)
    for first, after in zip(known, [*known[1:], len(tokens)], strict=True):
        if after == first + 1:
            continue
        group = recorder.phonemes[first_phonemes[first] : first_phonemes[after]]
        onsets = [sample for name, sample in group if not _is_pause(name)] or [starts[first]]
        ends = np.cumsum([count_phonemes(token.group()) for token in tokens[first:after]])
        for index, end in zip(range(first + 1, after), ends[:-1], strict=True):
            # Said together they may have a phoneme more or less than said alone.
            phoneme = round(len(onsets) * end / max(ends[-1], 1))
            starts[index] = onsets[min(phoneme, len(onsets) - 1)]
    return [starts[index] for index in range(len(tokens))]


def _word_ends(starts: list[int], phonemes: list[tuple[str, int]], total: int) -> list[int]:
    """First sample after every token: of the next token, or of the pause before it."""
    ends = []
    for start, next_start in zip(starts, [*starts[1:], total], strict=True):
        end = next_start
        for name, sample in reversed(phonemes):
            if start < sample < next_start:
                if not _is_pause(name):
                    break
                end = sample
        ends.append(end)
    return ends
