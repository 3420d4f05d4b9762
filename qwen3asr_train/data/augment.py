"""Augmentation of waveforms and features; everything random comes from the sample's generator."""

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np
import soundfile
from torch import Tensor

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.augment_codec import CODECS, clip_peaks, through_codec
from qwen3asr_train.data.augment_noise import Recordings, add_noise, babble, coloured_noise
from qwen3asr_train.data.augment_room import reverberate, synthetic_response
from qwen3asr_train.data.augment_time import (
    change_pitch,
    change_speed,
    change_tempo,
    scale_times,
    shift_times,
)
from qwen3asr_train.data.augment_warp import NYQUIST, warp_frequencies
from qwen3asr_train.errors import UserError
from qwen3asr_train.options import as_arguments

_OWN_DRAWS = ("tempo", "pitch", "reverb", "noise_file", "babble", "clipping", "codec", "edges")
"""Steps with a generator each. New ones go to the end, so that the draws of the others stay."""

_LIMITS = {"speed_range": (0.1, 10), "tempo_range": (0.1, 10), "pitch_semitones": (-24, 24),
           "reverb_rt60": (0.01, 10), "babble_voices": (1, 100), "clipping_db": (0, 100),
           "codec_kbps": (1, 1000), "edges_seconds": (0, 60), "warp_range": (0.1, 10)}
"""Of ranges; those not here, in dB, are held to -100 to 100."""

_LISTS = ("codecs", "warp_hz")
"""Fields of several values that are no range."""

_WARP_DRAWS = 1 << 16
"""Spawn key of the generator for warping, far behind those of the steps on the waveform."""


@dataclass(frozen=True)
class Augmentation:
    """Shares are probabilities per sample; see configs/data/*.yaml for what each field means.

    Raises UserError for shares, ranges and codecs that make no sense and for folders without audio.
    """

    speed_share: float = 0.0
    speed_range: tuple[float, float] = (0.9, 1.1)
    tempo_share: float = 0.0
    tempo_range: tuple[float, float] = (0.9, 1.1)
    pitch_share: float = 0.0
    pitch_semitones: tuple[float, float] = (-2.0, 2.0)
    edges_share: float = 0.0
    edges_seconds: tuple[float, float] = (0.0, 1.0)
    reverb_share: float = 0.0
    reverb_files: str | tuple[str, ...] | None = None
    reverb_rt60: tuple[float, float] = (0.2, 0.8)
    reverb_direct_db: tuple[float, float] = (-3.0, 12.0)
    noise_share: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    noise_file_share: float = 0.0
    noise_files: str | tuple[str, ...] | None = None
    noise_file_snr_db: tuple[float, float] = (5.0, 30.0)
    babble_share: float = 0.0
    babble_files: str | tuple[str, ...] | None = None
    babble_voices: tuple[int, int] = (3, 7)
    babble_snr_db: tuple[float, float] = (10.0, 25.0)
    gain_share: float = 0.0
    gain_db: tuple[float, float] = (-12.0, 6.0)
    clipping_share: float = 0.0
    clipping_db: tuple[float, float] = (3.0, 15.0)
    codec_share: float = 0.0
    codecs: tuple[str, ...] = ("mp3", "opus", "ulaw", "alaw", "gsm")
    codec_kbps: tuple[float, float] = (12.0, 64.0)
    warp_share: float = 0.0
    warp_range: tuple[float, float] = (0.8, 1.25)
    warp_hz: tuple[float, ...] = (500.0, 1500.0, 3000.0)
    frequency_masks: int = 0
    frequency_mask_bins: int = 27
    time_masks: int = 0
    time_mask_share: float = 0.05

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_share") and not _is_between(value, 0, 1):
                raise UserError(f"data.augmentation.{field.name}={value}: a share is from 0 to 1")
            if isinstance(field.default, tuple) and field.name not in _LISTS:
                _check_range(field.name, value)
        self._check_codecs()
        self._check_warp()
        # what cannot work is said when a run starts, not by a loader process
        if self.noise_file_share:
            _ = self._noises
        if self.babble_share:
            _ = self._voices
        if self.reverb_share and self.reverb_files:
            _ = self._responses

    def _check_codecs(self) -> None:
        unknown = [codec for codec in self.codecs if codec not in CODECS]
        if unknown or not self.codecs:
            raise UserError(f"data.augmentation.codecs={list(self.codecs)}: there are "
                            f"{', '.join(CODECS)}")
        for codec in self.codecs if self.codec_share else ():
            container, subtype = CODECS[codec]
            if subtype not in soundfile.available_subtypes(container):
                raise UserError(f"data.augmentation.codecs: libsndfile "
                                f"{soundfile.__libsndfile_version__} here has no {codec}")

    def _check_warp(self) -> None:
        low, high = self.warp_range
        hertz = (*self.warp_hz, NYQUIST)
        if not self.warp_hz or not all(_is_between(f, 20, NYQUIST) for f in hertz) or any(
                b / a <= high / low for a, b in pairwise(hertz)):
            raise UserError(f"data.augmentation.warp_hz={list(self.warp_hz)}: frequencies from 20 "
                            f"to {NYQUIST:.0f} Hz, each more than {high / low:.2f} times the one "
                            "before (the quotient of warp_range), and so far below the last")

    @cached_property
    def _noises(self) -> Recordings:
        return self._recordings("noise_files")

    @cached_property
    def _voices(self) -> Recordings:
        return self._recordings("babble_files")

    @cached_property
    def _responses(self) -> Recordings:
        return self._recordings("reverb_files")

    def _recordings(self, field: str) -> Recordings:
        if not getattr(self, field):
            raise UserError(f"data.augmentation.{field} is not set, but its share is above 0")
        return Recordings(getattr(self, field), f"data.augmentation.{field}")

    def clip(self, record: dict, waveform: np.ndarray, rng: np.random.Generator
             ) -> tuple[dict, np.ndarray]:
        """A record and float32 ``(samples,)`` at 16 kHz -> the same, changed in the order of the
        fields.

        Only speed, tempo and edges change the length, and with it the record's ``words`` and
        ``duration``. Speed, coloured noise and gain draw from ``rng`` itself. Every other step has
        a generator of its own, spawned from ``rng``'s seed, which leaves the stream of ``rng`` as
        it is: switching such a step on changes no draw of another. Raises DataError for a noise
        or impulse response that cannot be read.
        """
        own = self._own_draws(rng)
        waveform, factor = self._retimed(waveform, rng, own)
        spoken, before = len(waveform) / SAMPLE_RATE, 0.0
        if draws := own.get("edges"):
            edges = draws.uniform(*self.edges_seconds, 2)
            waveform = np.pad(waveform, np.round(edges * SAMPLE_RATE).astype(int))
            before = float(edges[0])
        if draws := own.get("reverb"):
            waveform = reverberate(waveform, self._response(draws))
        waveform = self._noisy(waveform, rng, own)
        if rng.random() < self.gain_share:
            waveform = waveform * np.float32(10 ** (rng.uniform(*self.gain_db) / 20))
        if draws := own.get("clipping"):
            waveform = clip_peaks(waveform, draws.uniform(*self.clipping_db))
        if draws := own.get("codec"):
            waveform = through_codec(waveform, self.codecs[int(draws.integers(len(self.codecs)))],
                                     draws.uniform(*self.codec_kbps))
        if factor != 1.0:
            record = scale_times(record, factor, spoken)
        if len(waveform) / SAMPLE_RATE != spoken:
            record = shift_times(record, before, len(waveform) / SAMPLE_RATE)
        return record, waveform

    def waveform(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """:meth:`clip` of audio alone."""
        return self.clip({}, waveform, rng)[1]

    def _own_draws(self, rng: np.random.Generator) -> dict[str, np.random.Generator]:
        """The generators of those steps that this sample goes through."""
        shares = {step: getattr(self, f"{step}_share") for step in _OWN_DRAWS}
        if not any(shares.values()):
            return {}
        return {step: draws for step, draws in zip(shares, rng.spawn(len(shares)), strict=True)
                if draws.random() < shares[step]}

    def _retimed(self, waveform: np.ndarray, rng: np.random.Generator,
                 own: dict[str, np.random.Generator]) -> tuple[np.ndarray, float]:
        """The waveform after speed, tempo and pitch, and how many times as fast it is."""
        factor = 1.0
        if rng.random() < self.speed_share:
            factor = rng.uniform(*self.speed_range)
            waveform = change_speed(waveform, factor)
        if draws := own.get("tempo"):
            tempo = draws.uniform(*self.tempo_range)
            factor, waveform = factor * tempo, change_tempo(waveform, tempo)
        if draws := own.get("pitch"):
            waveform = change_pitch(waveform, draws.uniform(*self.pitch_semitones))
        return waveform, factor

    def _response(self, draws: np.random.Generator) -> np.ndarray:
        """An impulse response ``(samples,)``, measured if there are any."""
        if self.reverb_files:
            return self._responses.response(draws)
        return synthetic_response(draws.uniform(*self.reverb_rt60),
                                  draws.uniform(*self.reverb_direct_db), draws)

    def _noisy(self, waveform: np.ndarray, rng: np.random.Generator,
               own: dict[str, np.random.Generator]) -> np.ndarray:
        """The waveform with noise of each kind that is drawn."""
        if rng.random() < self.noise_share:
            waveform = add_noise(waveform, rng.uniform(*self.noise_snr_db),
                                 coloured_noise(len(waveform), rng))
        if draws := own.get("noise_file"):
            waveform = add_noise(waveform, draws.uniform(*self.noise_file_snr_db),
                                 self._noises.piece(len(waveform), draws))
        if draws := own.get("babble"):
            snr_db, (fewest, most) = draws.uniform(*self.babble_snr_db), self.babble_voices
            voices = int(draws.integers(fewest, most + 1))
            waveform = add_noise(waveform, snr_db,
                                 babble(len(waveform), voices, self._voices, draws))
        return waveform

    def features(self, features: Tensor, rng: np.random.Generator) -> Tensor:
        """``(frames, mel)``: frequencies warped, and SpecAugment (Park et al. 2019) without warping
        of time: masked by the mean.

        Warping has a generator of its own, as have most steps of :meth:`clip`.
        """
        if self.warp_share:
            seed = rng.bit_generator.seed_seq
            draws = np.random.default_rng(np.random.SeedSequence(
                seed.entropy, spawn_key=(*seed.spawn_key, _WARP_DRAWS)))
            if draws.random() < self.warp_share:
                logarithms = draws.uniform(*np.log(self.warp_range), len(self.warp_hz))
                features = warp_frequencies(features, self.warp_hz, np.exp(logarithms))
        if not (self.frequency_masks or self.time_masks):
            return features
        frames, bins = features.shape
        features, fill = features.clone(), features.mean()
        for _ in range(self.frequency_masks):
            width = int(rng.integers(0, self.frequency_mask_bins + 1))
            start = int(rng.integers(0, bins - width + 1))
            features[:, start:start + width] = fill
        for _ in range(self.time_masks):
            width = int(rng.integers(0, int(frames * self.time_mask_share) + 1))
            start = int(rng.integers(0, frames - width + 1))
            features[start:start + width] = fill
        return features


def _is_between(value: object, lowest: float, highest: float) -> bool:
    return isinstance(value, int | float) and lowest <= value <= highest


def _check_range(name: str, value: object) -> None:
    lowest, highest = _LIMITS.get(name, (-100, 100))
    if not (isinstance(value, tuple) and len(value) == 2 and _is_between(value[1], lowest, highest)
            and _is_between(value[0], lowest, value[1])):
        raise UserError(f"data.augmentation.{name}={value}: a range is [low, high] with "
                        f"{lowest} <= low <= high <= {highest}")
    if name == "babble_voices" and not all(isinstance(count, int) for count in value):
        raise UserError(f"data.augmentation.{name}={value}: voices are whole numbers")


def build(config: dict | None) -> Augmentation:
    """An :class:`Augmentation` from a config mapping (lists become tuples)."""
    options = as_arguments(config or {})
    if isinstance(options.get("codecs"), str):
        options["codecs"] = (options["codecs"],)
    return Augmentation(**options)


IDENTITY = Augmentation()
"""Changes nothing: evaluation."""
