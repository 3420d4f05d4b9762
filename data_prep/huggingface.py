"""``python -m data_prep.huggingface``: a dataset of Hugging Face ``datasets`` to shards.

The audio is taken as it is stored and decoded by our own code: neither torchcodec, which
``datasets`` 5 decodes with, nor code from the dataset's repository is needed.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_prep.command import converter_parser, resolve, run_converter
from data_prep.convert import Bad, Item
from qwen3asr_train.errors import DataError, UserError

_DESCRIPTION = """\
A dataset of Hugging Face datasets to shards. DATASET is a name on the hub, a folder written by
save_to_disk, a folder of parquet, json, csv or audio files, or one such file. What is local is
read in place; what is on the hub is downloaded to the cache first, or not, with --streaming."""

_AUDIO_COLUMNS = ("audio", "file", "path", "audio_path", "file_name")
_TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text")
_LANGUAGE_COLUMNS = ("language", "locale", "lang")
_SPEAKER_COLUMNS = ("speaker_id", "client_id", "speaker")
_FILE_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv",
                 ".tsv": "csv", ".arrow": "arrow"}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = converter_parser("huggingface", _DESCRIPTION,
                              "python -m data_prep.huggingface google/fleurs --config de_de "
                              "--text-column\n      transcription --language de --streaming "
                              "--out shards/fleurs-de")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--config", metavar="NAME", help="configuration of the dataset")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--streaming", action="store_true",
                        help="read from the hub as needed, without a copy in the cache")
    for name, columns in (("audio", _AUDIO_COLUMNS), ("text", _TEXT_COLUMNS),
                          ("language", _LANGUAGE_COLUMNS), ("speaker", _SPEAKER_COLUMNS)):
        parser.add_argument(f"--{name}-column", metavar="NAME",
                            help=f"default: the first there is of {', '.join(columns)}")
    return run_converter(parser, _source, lambda args: Path(args.dataset).stem, argv)


def _source(args: Namespace) -> tuple[Iterator[Item | Bad], int | None]:
    with _errors(args.dataset):
        rows = _load(args)
        columns = _columns(args, rows)
        total = len(rows) if hasattr(rows, "__len__") else None
        rows = _with_raw_audio(rows, columns["audio"])
    local = Path(args.dataset)
    roots = (local if local.is_dir() else local.parent, Path.cwd())
    return items(rows, columns, roots, f"{args.dataset}[{args.split}]"), total


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """What ``datasets`` raises for a wrong name, split, file or network, as one line."""
    from datasets.exceptions import DatasetsError
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        advice = "; try --streaming" if cause is not error else ""
        lines = str(cause).strip().splitlines() or [type(error).__name__]
        raise UserError(f"dataset {name}: {lines[0]}{advice}") from error


def _load(args: Namespace) -> Iterable[dict]:
    import datasets
    path = Path(args.dataset)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = datasets.load_from_disk(args.dataset)
        if isinstance(loaded, datasets.DatasetDict):
            if args.split not in loaded:
                raise UserError(f"dataset {path}: no split {args.split!r}, only "
                                f"{', '.join(loaded)}")
            loaded = loaded[args.split]
        return loaded
    if path.is_file():
        if path.suffix.lower() not in _FILE_FORMATS:
            raise UserError(f"dataset {path}: not a {', '.join(_FILE_FORMATS)} file")
        options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
        return datasets.load_dataset(_FILE_FORMATS[path.suffix.lower()], data_files=str(path),
                                     split=args.split, streaming=True, **options)
    # What is local is streamed too: reading in place instead of copying it to the cache.
    return datasets.load_dataset(args.dataset, args.config, split=args.split,
                                 streaming=args.streaming or path.is_dir())


def _columns(args: Namespace, rows: Iterable[dict]) -> dict[str, str | None]:
    """The columns to use. Raises UserError when audio or text is not found."""
    from datasets import Audio
    features = rows.features or dict.fromkeys(next(iter(rows), {}))
    typed = tuple(name for name, feature in features.items() if isinstance(feature, Audio))
    found = {}
    for name, usual in (("audio", typed + _AUDIO_COLUMNS), ("text", _TEXT_COLUMNS),
                        ("language", _LANGUAGE_COLUMNS), ("speaker", _SPEAKER_COLUMNS)):
        wanted = getattr(args, f"{name}_column")
        found[name] = next((column for column in ((wanted,) if wanted else usual)
                            if column in features), None)
        if found[name] is None and (wanted or name in ("audio", "text")):
            raise UserError(f"dataset {args.dataset}: no column for {name}"
                            f"{f' called {wanted!r}' if wanted else ''}; name one with "
                            f"--{name}-column, there are: {', '.join(features)}")
    return found


def _with_raw_audio(rows: Iterable[dict], column: str) -> Iterable[dict]:
    import datasets

    class RawAudio(datasets.Audio):
        """Audio whose rows pass as they are; the original's encoding wants torchcodec."""

        def encode_example(self, value: str | bytes | dict | None) -> dict | None:
            if isinstance(value, str):
                return {"bytes": None, "path": value}
            return {"bytes": value, "path": None} if isinstance(value, bytes) else value

    if rows.features is None or not isinstance(rows.features[column], datasets.Audio):
        return rows
    streamed = isinstance(rows, datasets.IterableDataset)
    kind = RawAudio if streamed else datasets.Audio
    return rows.cast_column(column, kind(decode=False))


def items(rows: Iterable[dict], columns: dict[str, str | None], roots: tuple[Path, ...],
          name: str) -> Iterator[Item | Bad]:
    """Items row by row; the key is the number of the row."""
    with _errors(name):
        for number, row in enumerate(rows):
            place = f"{name}:{number}"
            try:
                audio = _audio(row[columns["audio"]], roots)
            except DataError as error:
                yield Bad(f"{number:08d}", place, str(error))
                continue
            values = {kind: row[column] for kind, column in columns.items() if column}
            speaker = values.get("speaker")
            where = f"{audio} ({place})" if isinstance(audio, str) else place
            yield Item(key=f"{number:08d}", audio=audio, name=where, text=values["text"],
                       language=values.get("language"),
                       meta={} if speaker is None else {"speaker": str(speaker)})


def _audio(value: object, roots: tuple[Path, ...]) -> str | bytes | tuple[np.ndarray, int]:
    """The audio of a row: bytes, a path (also inside an archive or on the hub), or samples."""
    if isinstance(value, dict):
        if value.get("array") is not None and value.get("sampling_rate"):
            return np.asarray(value["array"]), int(value["sampling_rate"])
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise DataError("the row has no audio")
    if "://" not in value:
        return resolve(value, *roots)
    import fsspec
    try:
        with fsspec.open(value, "rb") as file:
            return file.read()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {value}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
