"""Raw audio from a pipe, in pieces as they arrive."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from qwen3asr_train.errors import DataError

_READ_BYTES = 1 << 16  # at most, at a time: 2 s


def pcm_pieces(stream: BinaryIO, name: str = "stdin") -> Iterator[np.ndarray]:
    """Signed 16-bit little-endian mono -> float32 ``(samples,)`` in -1..1, until the end of file.

    ``stream``: unbuffered or with ``read1``, so that no piece waits for more. A sample whose two
    bytes arrive apart is put together. DataError if there is no sample, for a WAV file (its header
    is no audio) and, after all samples, if a byte is left over.
    """
    read = stream.read1 if hasattr(stream, "read1") else stream.read
    data = read(_READ_BYTES)
    while 0 < len(data) < 4 and (more := read(_READ_BYTES)):  # enough to know a header by
        data += more
    if data.startswith(b"RIFF"):
        raise DataError(f"{name}: a WAV file, not raw samples; send 16 kHz mono s16le, e.g. "
                        "ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | …")
    if len(data) < 2:
        raise DataError(f"{name}: no audio samples")
    while True:
        whole = len(data) // 2 * 2
        yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768
        rest = data[whole:]
        if not (more := read(_READ_BYTES)):
            break
        data = rest + more
    if rest:
        raise DataError(f"{name}: an odd number of bytes; the last one is half a 16-bit sample")
