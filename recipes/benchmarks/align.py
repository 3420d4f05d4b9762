"""The forced aligner: our path against transformers' own on the same weights.

    python recipes/benchmarks/align.py [--model RUN/model] [--batches 1 8 32 128] [--json FILE]

Clips of ragged lengths, with words at the pace of speech. Ours: packed encoder windows, clips of
like length together, logits at slots only. Theirs: `prepare_forced_aligner_inputs` -> model ->
`decode_forced_alignment`, which pads a batch to its longest clip. Both include features, tokens
and decoding. Also the repair of many slots, by our rule and by the quadratic one.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor
from transformers.models.qwen3_asr.processing_qwen3_asr import _fix_timestamps

from qwen3asr_train.decoding.alignment import ForcedAligner
from qwen3asr_train.decoding.timestamps import repair_times
from qwen3asr_train.models import aligner
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

TEXT = "turn on the light in the small room and read what stands on the third page of the book"
WORDS_A_SECOND = 2.5
PRESET = Path(__file__).parents[2] / "configs" / "model" / "tiny.yaml"


def make_clips(count: int, shortest: float, longest: float, seed: int = 0
               ) -> tuple[list[np.ndarray], list[str]]:
    """Noise, with lengths spread evenly over logarithms, and as many words as would be said."""
    rng = np.random.default_rng(seed)
    seconds = np.exp(rng.uniform(np.log(shortest), np.log(longest), count))
    waveforms = [(0.1 * rng.standard_normal(int(s * 16_000))).astype(np.float32) for s in seconds]
    words = TEXT.split()
    return waveforms, [" ".join(words[i % len(words)] for i in range(max(1, int(
        s * WORDS_A_SECOND)))) for s in seconds]


def make_model(folder: Path, num_labels: int) -> None:
    """A tiny aligner with random weights."""
    preset = OmegaConf.to_container(OmegaConf.load(PRESET), resolve=True)
    processor = make_processor(train_tokenizer([TEXT] * 9, 400))
    head = {"num_labels": num_labels, "bias": False, "dropout": 0.0, "init": "random"}
    aligner.save(aligner.build(preset, processor, 0, head), aligner.with_slots(processor), folder)


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds, after one call that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def compare(folder: str, batch: int, shortest: float, longest: float, repeats: int) -> dict:
    """Seconds of both paths for one batch of clips, and how many words get the same times."""
    waveforms, texts = make_clips(batch, shortest, longest)
    ours = ForcedAligner(*aligner.load(folder))
    model = Qwen3ASRForTokenClassification.from_pretrained(folder).eval()
    processor = Qwen3ASRProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def theirs() -> list[list[dict]]:
        inputs, words = processor.prepare_forced_aligner_inputs(waveforms, texts)
        return processor.decode_forced_alignment(
            model(**inputs).logits, inputs["input_ids"], words, model.config.timestamp_token_id)

    def mine() -> list:
        return ours(waveforms, texts, [None] * batch)

    same = [abs(a.start - b["start_time"]) < 1e-6 and abs(a.end - b["end_time"]) < 1e-6
            for row, other in zip(mine(), theirs(), strict=True)
            for a, b in zip(row, other, strict=True)]
    audio = sum(map(len, waveforms)) / 16_000
    seconds = {"ours": timed(mine, repeats), "theirs": timed(theirs, repeats)}
    return {"batch": batch, "audio_seconds": audio, "same_words": float(np.mean(same)),
            **{f"{side}_seconds": value for side, value in seconds.items()},
            **{f"{side}_rtf": value / audio for side, value in seconds.items()},
            "times_as_fast": seconds["theirs"] / seconds["ours"]}


def compare_repair(slots: int, quadratic_slots: int) -> dict:
    """Seconds to repair shuffled times by our rule, and fewer of them by the quadratic one."""
    times = (np.random.default_rng(0).integers(0, 3750, slots) * 80).astype(np.float32)
    few = times[:quadratic_slots]
    assert repair_times(few.tolist()) == _fix_timestamps(few)
    return {"slots": slots, "ours_seconds": timed(lambda: repair_times(times.tolist()), 5),
            "quadratic_slots": quadratic_slots,
            "quadratic_seconds": timed(lambda: _fix_timestamps(few), 1)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FOLDER", help="default: a tiny one, random weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128], metavar="N")
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 30.0), metavar="S",
                        help="shortest and longest clip (default: 2 30)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--num-labels", type=int, default=3750, metavar="N")
    parser.add_argument("--slots", type=int, nargs=2, default=(10_000, 10_000), metavar="N",
                        help="repaired by our rule, and by the quadratic one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.model or made
        if args.model is None:
            make_model(Path(made), args.num_labels)
        rows = []
        print("batch  audio s  ours s  theirs s  ours RTF  theirs RTF  faster  same words")
        for batch in args.batches:
            row = compare(folder, batch, *args.seconds, args.repeats)
            rows.append(row)
            print(f"{batch:5d}  {row['audio_seconds']:7.0f}  {row['ours_seconds']:6.2f}  "
                  f"{row['theirs_seconds']:8.2f}  {row['ours_rtf']:8.4f}  {row['theirs_rtf']:10.4f}"
                  f"  {row['times_as_fast']:5.2f}x  {100 * row['same_words']:.1f} %", flush=True)
    repair = compare_repair(*args.slots)
    print(f"repair of {repair['slots']} slots: {1000 * repair['ours_seconds']:.1f} ms; the "
          f"quadratic rule, {repair['quadratic_slots']} slots: {repair['quadratic_seconds']:.1f} s")
    if args.json:
        args.json.write_text(json.dumps({"align": rows, "repair": repair}, indent=1) + "\n")


if __name__ == "__main__":
    main()
