"""``python -m data_prep.ctc_align``: word times by the CTC head of an AuT of ours."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from data_prep.align_teachers.options import filters_of, run_teacher, teacher_parser, to_stderr
from data_prep.align_teachers.relabel import Sample, Summary, Teacher, relabel
from data_prep.align_teachers.times import Words
from data_prep.import_times import teacher_of_files

_DESCRIPTION = """\
Give the samples of shards the word times of CTC alignment: the likeliest path through the CTC head
of an AuT (RUN/model of stage=aut) that says their text. --second: files of another teacher, as
data_prep.import_times takes them, for comparison."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = teacher_parser("ctc_align", _DESCRIPTION, "python -m data_prep.ctc_align shards/mine "
                            "--model runs/aut/NAME/model --out shards/timed")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="RUN/model of stage=aut")
    parser.add_argument("--second", type=Path, metavar="PATH")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args(argv)
    return run_teacher(args, lambda: _run(args))


def _run(args: Namespace) -> Summary:
    settings = {"teacher": f"CTC of {args.model}", "second": args.second and str(args.second)}
    second = teacher_of_files(args.second) if args.second else None
    return relabel(args.shards, args.out, ctc_teacher(args.model, args.device), filters_of(args),
                   settings, second=second, overwrite=args.overwrite, progress=to_stderr)


def ctc_teacher(folder: str, device: str = "cpu") -> Teacher:
    """The AuT in ``folder`` as a teacher."""
    from qwen3asr_train.data.audio import decode
    from qwen3asr_train.data.slots import split_units
    from qwen3asr_train.decoding.ctc_alignment import CtcAligner
    from qwen3asr_train.errors import DataError
    from qwen3asr_train.models import aut

    model, processor = aut.load(folder, field="--model")
    align = CtcAligner(model.to(device), processor)

    def teacher(samples: Sequence[Sample]) -> list[Words | str]:
        found: list[Words | str] = [""] * len(samples)
        usable, waveforms, units = [], [], []
        for number, sample in enumerate(samples):
            try:
                waveform = decode(sample.audio, name=sample.entry.name)
                said = split_units(processor, sample.record["text"],
                                   sample.record.get("language"))
                if not said:
                    raise DataError("no words in the text")
            except DataError as error:
                found[number] = str(error)
                continue
            usable.append(number)
            waveforms.append(waveform)
            units.append(said)
        for number, said, spans in zip(usable, units, align.spans(waveforms, units), strict=True):
            found[number] = "too short for its text" if spans is None else [
                [unit, round(start, 4), round(end, 4)]
                for unit, (start, end) in zip(said, spans, strict=True)]
        return found

    return teacher


if __name__ == "__main__":
    sys.exit(main())
