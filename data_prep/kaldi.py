"""``python -m data_prep.kaldi``: a Kaldi data directory to shards."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from data_prep.command import converter_parser, reading, resolve, run_converter
from data_prep.convert import Bad, Item
from qwen3asr_train.errors import UserError

_DESCRIPTION = """\
A Kaldi data directory (https://kaldi-asr.org/doc/data_prep.html) to shards: wav.scp and text, and
where they are there segments, utt2spk, utt2lang, spk2gender. A wav.scp entry that is a command
("sph2pipe … |") is never executed: it is listed as bad; convert such audio to files first."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = converter_parser("kaldi", _DESCRIPTION,
                              "python -m data_prep.kaldi data/train --language en "
                              "--out shards/train")
    parser.add_argument("dir", type=Path, metavar="DIR", help="the data directory")
    parser.add_argument("--audio-root", type=Path, metavar="DIR", help="where relative paths in "
                        "wav.scp start; default: the working directory, then the data directory")
    return run_converter(parser, _source, lambda args: args.dir.resolve().name, argv)


def _source(args: Namespace) -> tuple[Iterator[Item | Bad], int]:
    if not args.dir.is_dir():
        raise UserError(f"no such folder: {args.dir}")
    roots = (args.audio_root,) if args.audio_root else (Path.cwd(), args.dir)
    transcripts = table(args.dir / "text")
    return items(args.dir, transcripts, roots), len(transcripts)


def items(folder: Path, transcripts: dict[str, str], roots: tuple[Path, ...]
          ) -> Iterator[Item | Bad]:
    """Items in the order of ``segments``, or of ``wav.scp`` when there are none.

    The tables are held in memory, about 300 bytes an utterance. Raises UserError for a missing
    or malformed table.
    """
    recordings = table(folder / "wav.scp")
    speakers, languages, genders = (table(folder / name, optional=True)
                                    for name in ("utt2spk", "utt2lang", "spk2gender"))
    missing = dict.fromkeys(transcripts)
    for utterance, recording, start, end in _segments(folder, recordings):
        place = recordings.get(recording)
        reason = _refusal(utterance, recording, place, transcripts)
        missing.pop(utterance, None)
        if reason:
            yield Bad(utterance, place or recording, reason)
            continue
        speaker = speakers.get(utterance)
        meta = {"speaker": speaker, "gender": genders.get(speaker or "")}
        path = resolve(place, *roots)
        yield Item(key=utterance, audio=path, name=path, text=transcripts[utterance],
                   language=languages.get(utterance), start=start, end=end,
                   meta={name: value for name, value in meta.items() if value})
    for utterance in missing:
        yield Bad(utterance, "", "in text, but not in segments or wav.scp")


def _refusal(utterance: str, recording: str, place: str | None, transcripts: dict) -> str | None:
    if place is None:
        return f"recording {recording!r} is not in wav.scp"
    if place.endswith("|") or place.startswith("|"):
        return "a command in wav.scp, which is not executed; convert the audio to a file"
    return None if utterance in transcripts else "no transcript in text"


def _segments(folder: Path, recordings: dict[str, str]
              ) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(utterance, recording, start s, end s); an end of -1 is the recording's end."""
    path = folder / "segments"
    if not path.is_file():
        yield from ((name, name, None, None) for name in recordings)
        return
    for utterance, rest in table(path).items():
        try:
            recording, start, end = rest.split()
            times = float(start), float(end)
        except ValueError as error:
            raise UserError(f"{path}: {utterance!r} needs a recording, a start and an end"
                            ) from error
        yield utterance, recording, times[0], None if times[1] == -1 else times[1]


def table(path: Path, *, optional: bool = False) -> dict[str, str]:
    """``KEY REST`` lines. Raises UserError when a key comes twice, or the file is missing."""
    if optional and not path.is_file():
        return {}
    rows: dict[str, str] = {}
    # Bytes that are no UTF-8 become surrogates, and the one utterance is refused for them.
    with reading(path), open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            key, *rest = line.strip().split(maxsplit=1) or [""]
            if key in rows:
                raise UserError(f"{path}:{number}: {key!r} comes twice")
            if key:
                rows[key] = rest[0] if rest else ""
    return rows


if __name__ == "__main__":
    sys.exit(main())
