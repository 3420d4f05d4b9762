"""``python -m data_prep.pseudo_label``: transcripts for shards of audio that has none."""

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

from data_prep.command import guarded, reporter
from data_prep.pseudo_filters import COPIES, DENSE_LETTERS, Filters
from data_prep.pseudo_pool import Outcome, Pool
from data_prep.pseudo_shard import Claims, Labelled, Plan, earlier
from data_prep.samples import Receipt, write_atomically
from qwen3asr_train.data.shards import find_shards, read_summary
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.languages import known_language, language_name

_POLL = 5.0  # seconds between looks at shards that another process is writing

_DESCRIPTION = """\
Transcribe shards of audio: the same samples, audio byte for byte, with the model's words and
language in place of what text they had (kept as meta.original_text). meta.pseudo_label tells
the model and its confidence. A model is any folder that our stages write (RUN/model), or any
encoder-decoder, CTC model or transducer of transformers, as a folder or a hub name. Audio
without transcripts becomes shards with data_prep.folder --unlabelled, or with data_prep.jsonl:
"text": "", "task": "unlabelled"."""

_EPILOG = f"""\
filters, each with its name in OUT/rejected.jsonl (see data_prep/pseudo_filters.py):
  confidence   geometric mean of the probabilities of what the model chose
  empty, no language, special token
               a language without words, words without a language from a model that tells
               languages, <unk> and the like in the words
  repetition   share of the words (or hanzi, kana …) in one pattern {COPIES} or more times in a row
  compression  bytes of the text over bytes of its zlib compression (2.4 is Whisper's limit)
  slow, fast   letters a second of audio; a hanzi, kana or hangul counts as {DENSE_LETTERS} letters
  language, agreement
               of two models; agreement is 1 - edits / words (or characters) of the longer text
and, of the audio: undecodable, unreadable, no audio.

A stopped run goes on when the same command is given again: a shard is there whole, or not at
all. --part 2/8 does the second of eight parts of the shards; in a SLURM array, or in several
tasks of srun, each takes its part by itself.

examples:
  python -m data_prep.pseudo_label shards/raw --model runs/sft/NAME/model --out shards/labelled
  python -m data_prep.pseudo_label shards/raw --model runs/sft/NAME/model \\
    --second openai/whisper-large-v3 --require-language-agreement --min-agreement 0.8 \\
    --out shards/labelled
  sbatch --array=0-15 --gpus=1 --wrap 'python -m data_prep.pseudo_label …'"""


class Part(NamedTuple):
    """The ``index``-th of ``count`` parts, from 0."""

    index: int
    count: int

    def of(self, shards: list[str]) -> list[str]:
        """Every ``count``-th shard: parts do not overlap, and together are all."""
        return shards[self.index::self.count]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 when a shard could not be labelled."""
    args = _parser().parse_args(argv)
    return guarded(lambda: _run(args), f"interrupted; whole shards are kept in {args.out}: give "
                                       "the same command again to go on")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pseudo_label", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARD", help="tars with an index, folders of them, or globs")
    add("--model", required=True, metavar="MODEL", help="what labels: a folder, or a hub name")
    add("--second", metavar="MODEL", help="labels what the filters pass, for comparison")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the labelled shards")
    add("--language", metavar="L", help="the language of all samples (English name or code): our "
        "models and Whisper are told; with others it is what the labels say")
    add("--any-language", action="store_true", help="let --language be one that the released "
        "models do not know")
    for field in fields(Filters):
        option = f"--{field.name.replace('_', '-')}"
        if field.type is bool:
            add(option, action="store_true", help="reject where the two models' languages differ")
        else:
            add(option, type=_number(float, 0), default=field.default, metavar="X",
                help="default: %(default)s")
    add("--max-new-tokens", type=_number(int, 1), default=256, metavar="N",
        help="of one piece of audio (default: %(default)s)")
    add("--max-piece-seconds", type=_number(float, 1), default=30.0, metavar="S",
        help="longer audio is cut where it is quiet (default: %(default)s)")
    add("--batch-seconds", type=_number(float, 1), default=120.0, metavar="S",
        help="audio in one batch, padding and all (default: %(default)s)")
    add("--device", default="auto", help="auto (default: the GPUs, if there are any), cpu, cuda, "
                                         "cuda:1 …")
    add("--workers", type=_number(int, 1), metavar="N", help="processes, each with the model(s) "
        "(default: one per GPU, or one)")
    add("--part", type=_part, metavar="I/N", help="only the I-th of N parts of the shards "
        "(default: by SLURM's variables, else all)")
    add("--overwrite", action="store_true", help="write anew what other settings or other samples "
        "made in OUT; what these made stays")
    return parser


def _number(kind: type, least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} up")
        return value

    return parse


def _part(text: str) -> Part:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, e.g. 1/2")
    return Part(int(match[1]) - 1, int(match[2]))


def part_of_job(environment: Mapping[str, str]) -> Part:
    """The part of this task of a SLURM array, of a job step's several tasks, or of both.

    The number of tasks is srun's, SLURM_STEP_NUM_TASKS: SLURM_NTASKS is also set in the batch
    script itself, which is one process. Raises UserError for an array with gaps.
    """
    def variable(name: str, default: int) -> int:
        return int(environment.get(f"SLURM_{name}", default))

    part = Part(0, 1)
    if "SLURM_ARRAY_TASK_ID" in environment:
        count, first = variable("ARRAY_TASK_COUNT", 1), variable("ARRAY_TASK_MIN", 0)
        index, rest = divmod(variable("ARRAY_TASK_ID", 0) - first, variable("ARRAY_TASK_STEP", 1))
        last = first + (count - 1) * variable("ARRAY_TASK_STEP", 1)
        if rest or last != variable("ARRAY_TASK_MAX", last) or not 0 <= index < count:
            raise UserError("the task numbers of this SLURM array have gaps, so its parts cannot "
                            "be told; name them: --part I/N")
        part = Part(index, count)
    tasks = variable("STEP_NUM_TASKS", 1)
    if tasks > 1:
        part = Part(part.index * tasks + variable("PROCID", 0), part.count * tasks)
    return part


def _run(args: argparse.Namespace) -> int:
    shards = _distinct(find_shards(args.shards), args.out)
    part = args.part or part_of_job(os.environ)
    settings = _settings(args)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    _prepare(args.out, settings, args.overwrite)
    plan = Plan(args.out, args.model, args.second, _filters(args), digest, args.overwrite,
                settings["language"], args.max_new_tokens, args.max_piece_seconds,
                args.batch_seconds)
    done, failed, found = {}, [], part.of(shards)
    todo, samples = [], 0
    for shard in found:
        try:
            if receipt := earlier(shard, plan):
                done[shard] = receipt
            else:
                samples += read_summary(shard).samples
                todo.append(shard)
        except DataError as error:
            failed.append(_failure(str(error)))
    resumed = len(done)
    try:
        for outcome in _outcomes(todo, plan, args, samples):
            if outcome.labelled is not None:
                done[outcome.shard] = outcome.labelled
            else:
                failed.append(_failure(outcome.failure))
    finally:
        listed = _list_rejected(args.out, part, [done[shard] for shard in found if shard in done])
    _summarise(args.out, part, list(done.values()), resumed, listed)
    if failed:
        print(f"{len(failed)} of {len(found)} shards could not be labelled; the same command does "
              "them when they are mended", file=sys.stderr)
    return 1 if failed else 0


def _failure(message: str) -> str:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return message


def _distinct(shards: list[str], out: Path) -> list[str]:
    """``shards`` as they are. UserError when two would have one name in ``out``, or are there."""
    names: dict[str, str] = {}
    for shard in shards:
        other = names.setdefault(Path(shard).name, shard)
        if other != shard:
            raise UserError(f"{other} and {shard} have the same name, and would both become "
                            f"{out / Path(shard).name}; give each folder an --out of its own")
        if Path(shard).resolve().parent == out.resolve():
            raise UserError(f"{shard} lies in --out {out}; choose another folder")
    return shards


def _filters(args: argparse.Namespace) -> Filters:
    filters = Filters(**{field.name: getattr(args, field.name) for field in fields(Filters)})
    if args.second is None and (filters.min_agreement or filters.require_language_agreement):
        raise UserError("--min-agreement and --require-language-agreement compare two models: "
                        "name the other with --second")
    return filters


def _settings(args: argparse.Namespace) -> dict:
    """What labels depend on; where the work is done and in what batches is not."""
    return {"model": _model_digest(args.model),
            "second": _model_digest(args.second) if args.second else None,
            "language": _language(args), "max_new_tokens": args.max_new_tokens,
            "max_piece_seconds": args.max_piece_seconds, **asdict(_filters(args))}


def _language(args: argparse.Namespace) -> str | None:
    try:
        return (known_language if args.any_language else language_name)(args.language)
    except ValueError as error:
        raise UserError(f"--language: {error} (--any-language lets it pass)") from error


def _model_digest(model: str) -> str:
    """Stands for a model: the content of its folder, or the commit on the hub."""
    from data_prep.pseudo_models import read_config
    config = read_config(model)
    if not Path(model).is_dir():
        return f"{model}@{config._commit_hash}"
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(model).rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(str(path.relative_to(model)).encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _prepare(out: Path, settings: dict, overwrite: bool) -> None:
    """Check that ``out`` is new or of these settings. Several parts may start at once."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder to write shards to")
    path = out / "pseudo_label" / "settings.json"
    try:
        if not path.is_file() and any(out.glob("*.tar")):
            raise UserError(f"{out} holds shards that this command did not write; choose another "
                            "folder")
        (out / "pseudo_label" / "receipts").mkdir(parents=True, exist_ok=True)
        with Claims(out).claim("settings", wait=True):
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
            changed = [name for name in settings if settings[name] != before.get(name)]
            if changed and not overwrite:
                options = " and ".join(f"--{name.replace('_', '-')}" for name in changed)
                raise UserError(f"{out} was made with another {options}; use the same, choose "
                                "another folder, or write all anew with --overwrite")
            write_atomically(path, json.dumps(settings))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error


def _outcomes(todo: list[str], plan: Plan, args: argparse.Namespace, samples: int
              ) -> Iterator[Outcome]:
    """What becomes of each shard; those that another process is writing come last."""
    if not todo:
        return
    with reporter(samples) as progress, Pool(plan, args.device, args.workers, len(todo)) as pool:
        def report(kept: int, seconds: float, rejected: list[dict]) -> None:
            progress(Receipt("", kept, seconds, rejected))

        while todo:
            busy = []
            for outcome in pool.outcomes(todo, report):
                if outcome.is_busy:
                    busy.append(outcome.shard)
                else:
                    yield outcome
            if busy:
                print(f"waiting for {len(busy)} shards that another process is writing",
                      file=sys.stderr, flush=True)
                time.sleep(_POLL)
            todo = busy


def _list_rejected(out: Path, part: Part, done: list[Labelled]) -> Path | None:
    """Write the rejected samples of this part; lists of another number of parts go."""
    for path in out.glob("rejected*.jsonl"):
        match = re.fullmatch(r"rejected(?:\.\d+-of-(\d+))?\.jsonl", path.name)
        if match and int(match[1] or 1) != part.count:
            path.unlink(missing_ok=True)
    name = f".{part.index + 1}-of-{part.count}" if part.count > 1 else ""
    path = out / f"rejected{name}.jsonl"
    rows = [json.dumps(row, ensure_ascii=False) for receipt in done for row in receipt.rejected]
    if not rows:
        path.unlink(missing_ok=True)
        return None
    write_atomically(path, "\n".join(rows) + "\n")
    return path


def _summarise(out: Path, part: Part, done: list[Labelled], resumed: int, listed: Path | None
               ) -> None:
    reasons = Counter(row["reason"] for receipt in done for row in receipt.rejected)
    what = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    rejected = f"rejected {reasons.total()} ({what}), listed in {listed}" if listed else \
        "rejected none"
    was_there = f" ({resumed} were there)" if resumed else ""
    silent = sum(receipt.silent for receipt in done)
    unheard = f"; {silent} hold no words that were heard, and have task 'nonspeech'" if silent \
        else ""
    of = f", part {part.index + 1} of {part.count}" if part.count > 1 else ""
    print(f"labelled {sum(r.samples for r in done)} samples "
          f"({sum(r.seconds for r in done) / 3600:.2f} hours) in "
          f"{sum(bool(r.samples) for r in done)} shards in {out}{was_there}{of}; {rejected}"
          f"{unheard}")


if __name__ == "__main__":
    sys.exit(main())
