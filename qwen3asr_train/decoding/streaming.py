"""Audio that arrives bit by bit to encoder tokens, a window at a time.

What the encoder sees of a window is that window alone: the convolutions restart every second and
attention stays inside. So a window is encoded as soon as its audio is there, and never again.
"""

import numpy as np
import torch
from torch import Tensor

from qwen3asr_train.data.features import CHUNK_FRAMES, LogMelStream, chunk
from qwen3asr_train.models.encoder import WindowedEncoder


class EncoderSession:
    """One stream through an encoder.

    The tokens of all calls, joined, are those of the encoder on the whole audio with the same
    ``window_chunks`` and ``log_mel(audio, window_frames=100 * window_chunks)``. How the audio is
    cut does not matter, not even to the last bit: windows are computed one by one, each with the
    same shapes. Memory and the cost of a second of audio do not grow with what was heard before.
    """

    def __init__(self, encoder: WindowedEncoder, window_chunks: int):
        self.encoder, self.window_chunks = encoder, window_chunks
        self._mel = LogMelStream(window_chunks * CHUNK_FRAMES)

    @torch.inference_mode()
    def accept(self, piece: np.ndarray) -> Tensor:
        """float32 ``(samples,)`` at 16 kHz, any number of them -> tokens ``(new, d_model)`` of the
        windows that they complete; often none."""
        return self._encode(self._mel.accept(piece))

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The tokens of the last window; the session is over."""
        return self._encode(self._mel.finish())

    def _encode(self, windows: list[Tensor]) -> Tensor:
        weight = self.encoder.ln_post.weight
        tokens = [torch.empty(0, len(weight), device=weight.device)]
        for window in windows:
            chunks, lengths = chunk(window)
            tokens.append(self.encoder(
                chunks.to(weight.device), chunk_lengths=lengths.to(weight.device),
                clip_chunks=torch.tensor([len(chunks)], device=weight.device),
                window_chunks=self.window_chunks).last_hidden_state)
        return torch.cat(tokens)
