"""What attention windows cost: an AuT scored at several of them, offline and as a stream."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.audio import SAMPLE_RATE, decode
from qwen3asr_train.data.context import DrawnContext
from qwen3asr_train.data.features import chunk, log_mel
from qwen3asr_train.data.plan import evaluation_cells
from qwen3asr_train.data.prompts import DecoderPrompts
from qwen3asr_train.data.shards import Entry, ShardReader
from qwen3asr_train.decoding.generate import autocast, ends_of, trim
from qwen3asr_train.decoding.streaming import EncoderSession
from qwen3asr_train.errors import DataError
from qwen3asr_train.evaluation.metrics import bootstrap_interval, score
from qwen3asr_train.evaluation.report_attention import AttentionMap
from qwen3asr_train.evaluation.report_windows import WindowScore
from qwen3asr_train.models.aut import AuT
from qwen3asr_train.models.aut_decoder import Memory
from qwen3asr_train.runtime.progress import show_progress
from qwen3asr_train.runtime.strategies import rank_and_size
from qwen3asr_train.stages.scoring import (
    Condition,
    Results,
    gather_lists,
    read_batch,
    score_entries,
    scoring_device,
)


@dataclass(frozen=True)
class Setting:
    """An attention window in seconds; ``streaming``: the audio arrives bit by bit."""

    seconds: int
    streaming: bool = False

    @property
    def name(self) -> str:
        """As in the names of metrics."""
        return f"{'streaming' if self.streaming else 'window'}_{self.seconds}s"


@dataclass(frozen=True)
class Scored:
    """The transcripts of a test set in one setting."""

    results: Results

    @property
    def wer(self) -> float:
        """Corpus-level word error rate."""
        return score([utterance for utterance, _ in self.results])["wer"]

    def for_report(self, setting: Setting) -> WindowScore:
        """With its 95 % interval."""
        low, high = bootstrap_interval([utterance for utterance, _ in self.results])
        label = f"{'streaming, ' if setting.streaming else ''}{setting.seconds} s"
        return WindowScore(label, setting.seconds, setting.streaming, self.wer, low, high)


def score_windows(model: AuT, processor: Qwen3ASRProcessor, entries: list[Entry],
                  config: DictConfig) -> list[tuple[Setting, Scored]]:
    """The test set at every window of ``stage.evaluation``, the longest offline one first."""
    options = config.stage.evaluation
    scored = [(Setting(seconds), Scored(score_entries(
        model, processor, entries, config, *rank_and_size(),
        Condition(f"windows of {seconds} s", window=seconds))))
        for seconds in sorted(options.windows, reverse=True)]
    if options.streaming_window:
        scored.append((Setting(options.streaming_window, streaming=True),
                       Scored(score_streams(model, processor, entries, config))))
    return scored


@torch.inference_mode()
def score_streams(model: AuT, processor: Qwen3ASRProcessor, entries: list[Entry],
                  config: DictConfig) -> Results:
    """Transcripts of audio that arrives in pieces of ``stage.evaluation.streaming_piece`` seconds.

    The encoder works while the audio arrives; the decoder writes when it has ended.
    """
    options, rank_of = config.stage.evaluation, rank_and_size()
    model = model.to(scoring_device(config)).eval()
    start = torch.tensor([DecoderPrompts(processor.tokenizer).prompt(0)], device=model.device)
    reader, results = ShardReader(), []
    cells = evaluation_cells(entries, config.data.evaluation_seconds, *rank_of)
    for cell in show_progress(cells, "scoring, streaming", len(cells), rank_of[0]):
        entries, records, tokens = [], [], []
        for entry in cell.entries:
            try:
                record, audio = reader.read(entry)
                waveform = decode(audio or b"", name=entry.name)
            except DataError:
                continue  # counted and judged where the same entries were scored offline
            with autocast(model.device.type):
                tokens.append(stream(model, waveform, options.streaming_window,
                                     options.streaming_piece))
            entries.append(entry)
            records.append(record)
        if not entries:
            continue
        lengths = torch.tensor([len(clip) for clip in tokens], device=model.device)
        memory = Memory.from_packed(torch.cat(tokens), lengths)
        prompts = start.repeat(len(tokens), 1)
        with autocast(model.device.type):
            found = model.decode(memory, prompts, torch.ones_like(prompts),
                                 config.stage.decoding.max_new_tokens)
        meta = {"entries": entries, "records": records,
                "contexts": [DrawnContext("")] * len(records)}
        results += read_batch(processor.tokenizer, trim(*found, ends_of(model)), meta, config)
    reader.close()
    return gather_lists(results)


def stream(model: AuT, waveform, window: int, piece_seconds: float) -> torch.Tensor:
    """A clip through an encoder session, ``(tokens, d_model)``."""
    session, step = EncoderSession(model.encoder, window), int(piece_seconds * SAMPLE_RATE)
    pieces = [session.accept(waveform[at:at + step]) for at in range(0, len(waveform), step)]
    return torch.cat([*pieces, session.finish()])


@torch.inference_mode()
def attention_maps(model: AuT, processor: Qwen3ASRProcessor, results: Results, config: DictConfig
                   ) -> dict[str, AttentionMap]:
    """The decoder's cross-attention while it writes some of its transcripts, by utterance.

    The mean over heads of the layer whose attention is most concentrated: in a trained decoder some
    layers look at the place that they write about, and others at everything.
    """
    longest = sorted(results, key=lambda result: -result[0].duration)
    chosen = longest[::max(1, len(longest) // max(1, config.stage.evaluation.attention_maps))]
    model = model.to(scoring_device(config)).eval()
    prompts, reader, maps = DecoderPrompts(processor.tokenizer), ShardReader(), {}
    for utterance, entry in chosen[:config.stage.evaluation.attention_maps]:
        chunks, lengths = chunk(log_mel(decode(reader.read(entry)[1], name=entry.name)))
        batch = {"input_features": chunks, "chunk_lengths": lengths,
                 "clip_chunks": torch.tensor([len(chunks)])}
        start = prompts.prompt(0)
        written = prompts.target(utterance.hypothesis, utterance.predicted_language)
        ids = torch.tensor([start + written], device=model.device)
        with autocast(model.device.type):
            tokens, counts = model.encode_audio({k: v.to(model.device) for k, v in batch.items()})
            weights = model.decoder.cross_attention(ids, Memory.from_packed(tokens, counts))
        # row i: where the decoder looks while it writes token i
        layers = weights[:, 0, :, len(start) - 1:-1].float().mean(1).cpu()
        entropy = -(layers * layers.clamp_min(1e-9).log()).sum(-1).mean(-1)
        names = tuple(processor.tokenizer.decode([token]) for token in written)
        window = model.encoder.n_window_infer / 100
        ends = tuple(window * i for i in range(1, int(utterance.duration // window) + 1))
        maps[utterance.key] = AttentionMap(names, layers[entropy.argmin()].numpy(),
                                           utterance.duration, ends)
    reader.close()
    return maps
