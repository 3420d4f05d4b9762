"""Additive noise: made here, from recordings, and babble; impulse responses from files."""

import glob
import io
import os
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import soundfile

from qwen3asr_train.data.audio import EXTENSIONS, SAMPLE_RATE, to_mono_16k
from qwen3asr_train.data.augment_room import rms
from qwen3asr_train.data.shards import Entry, ShardReader, read_entries, read_summary
from qwen3asr_train.errors import DataError, UserError

# TypeError: the extension is .raw. ValueError: a header with an absurd length.
_UNREADABLE = (soundfile.SoundFileError, OSError, TypeError, ValueError)


def coloured_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with a power spectrum of 1/f^a, a drawn from 0 (white) to 2 (brown)."""
    length = fast_length(samples)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    return np.fft.irfft(spectrum * frequency ** (-rng.uniform(0.0, 2.0) / 2), length)[:samples]


def fast_length(samples: int) -> int:
    """A length of at least ``samples``, at most an eighth more, that is 2^a 3^b 5^c: with large
    prime factors a Fourier transform takes many times as long."""
    return min(odd << max(0, -(-samples // odd) - 1).bit_length()
               for odd in (1, 3, 5, 9, 15, 25, 27, 45, 75, 81, 125, 135))


def add_noise(waveform: np.ndarray, snr_db: float, noise: np.ndarray) -> np.ndarray:
    """``waveform`` plus ``noise`` scaled to the signal-to-noise ratio over the whole clip."""
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    if power == 0.0 or noise_power == 0.0:
        return waveform
    scale = np.sqrt(power / noise_power / 10 ** (snr_db / 10))
    return (waveform + scale * noise).astype(np.float32)


def babble(samples: int, voices: int, speech: "Recordings", rng: np.random.Generator
           ) -> np.ndarray:
    """The sum of ``voices`` pieces of ``speech``, each as loud as the others: ``(samples,)``."""
    mixture = np.zeros(samples)
    for _ in range(voices):
        piece = speech.piece(samples, rng)
        mixture += piece / (rms(piece) or 1.0)
    return mixture


class Recordings:
    """Audio files, alone or in shards, to draw from; each is as likely as any other.

    ``patterns``: folders (with all below them), globs, audio files and .tar shards of ours, which
    may be mixed. ``field`` is what messages call them. Raises UserError when one matches nothing.
    Only the headers of shards are kept; a shard's entries are read when it is drawn.
    """

    def __init__(self, patterns: str | Iterable[str], field: str):
        found = {path for pattern in ([patterns] if isinstance(patterns, str) else patterns)
                 for path in _matches(pattern, field)}
        self._files = sorted(path for path in found if not path.endswith(".tar"))
        summaries = [read_summary(path) for path in sorted(found - set(self._files))]
        self._shards = [summary.path for summary in summaries if summary.samples]
        self._ends = np.cumsum([len(self._files)] +
                               [summary.samples for summary in summaries if summary.samples])
        if not self._ends[-1]:
            raise UserError(f"{field}: the shards hold no samples")
        self._reader = ShardReader()

    def piece(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """A random piece of a random recording, float32 ``(samples,)`` at 16 kHz, mono.

        A recording that is too short is repeated, from a random place of it. Raises DataError that
        names a recording that cannot be read.
        """
        name, source = self._draw(rng)
        try:
            with soundfile.SoundFile(source) as file:
                wanted = -(-samples * file.samplerate // SAMPLE_RATE) + 1
                file.seek(int(rng.integers(max(file.frames - wanted, 0) + 1)))
                piece, rate = file.read(wanted, dtype="float32", always_2d=True), file.samplerate
        except _UNREADABLE as error:
            raise _unreadable(name, error) from error
        piece = to_mono_16k(piece, rate, name=name)
        if len(piece) < samples:
            piece = np.resize(np.roll(piece, -int(rng.integers(len(piece)))), samples)
        return piece[:samples]

    def response(self, rng: np.random.Generator) -> np.ndarray:
        """A random channel of a whole impulse response, float32 ``(samples,)`` at 16 kHz.

        Raises DataError that names what cannot be read or is nothing but zeros.
        """
        name, source = self._draw(rng)
        try:
            channels, rate = soundfile.read(source, dtype="float32", always_2d=True)
        except _UNREADABLE as error:
            raise _unreadable(name, error) from error
        # one of them: the mean over an array of microphones would be a comb filter
        channel = to_mono_16k(channels[:, int(rng.integers(channels.shape[1]))], rate, name=name)
        if not channel.any():
            raise DataError(f"{name}: an impulse response of nothing but zeros")
        return channel

    def _draw(self, rng: np.random.Generator) -> tuple[str, str | io.BytesIO]:
        """The name of a recording and what soundfile opens."""
        number = int(rng.integers(self._ends[-1]))
        if number < len(self._files):
            return self._files[number], self._files[number]
        shard = int(np.searchsorted(self._ends, number, side="right")) - 1
        entries = _audio_entries(self._shards[shard])
        if not entries:
            raise DataError(f"{self._shards[shard]}: no audio in it")
        entry = entries[(number - int(self._ends[shard])) % len(entries)]
        return entry.name, io.BytesIO(self._reader.read(entry)[1])


def _matches(pattern: str, field: str) -> list[str]:
    """Audio files and shards at ``pattern``."""
    if os.path.isdir(pattern):
        found = glob.glob(os.path.join(glob.escape(pattern), "**", "*"), recursive=True)
    else:
        found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    found = [path for path in found if os.path.isfile(path)
             and path.rpartition(".")[2].lower() in ("tar", *EXTENSIONS)]
    if not found:
        raise UserError(f"{field}: no audio ({', '.join(EXTENSIONS)}) and no .tar shards at "
                        f"'{pattern}'")
    return found


@lru_cache(maxsize=64)
def _audio_entries(shard: str) -> list[Entry]:
    return [entry for entry in read_entries(shard) if entry.audio_at is not None]


def _unreadable(name: str, error: BaseException) -> DataError:
    reason = getattr(error, "error_string", error)
    return DataError(f"{name}: not readable as {'/'.join(EXTENSIONS)} ({reason})")
