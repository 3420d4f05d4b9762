"""``python -m data_prep.video``: films with text to shards of frames and sound."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.command import guarded, refuse_used
from data_prep.image_text import Found, described
from qwen3asr_train.data.audio import SAMPLE_RATE, decode, encode
from qwen3asr_train.data.shards import ShardWriter
from qwen3asr_train.errors import DataError, UserError

_DESCRIPTION = """\
Films with text to shards: frames (JPEG) with their times, and the sound (FLAC, 16 kHz mono). SOURCE
is a film or a folder of films, each with a caption in a .txt, or a record in a .json (`text`, and
perhaps `question`, `task`, `language`), of the same name. ffmpeg decodes them, so it must be on
PATH. A film that is longer than --max-frames at --fps gets fewer frames a second, so that they span
it. What cannot be used is named, counted and left out."""

FILMS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv", "flv", "wmv", "3gp")
"""Files that are taken for films, by extension."""

_SLACK_SECONDS = 1.0  # that a film may end before its header says, besides two frames
# a list of other files (HLS, ffconcat) passes for a film by its content: those are not opened
_SAFELY = ("-v", "error", "-protocol_whitelist", "file", "-format_whitelist",
           "mov,matroska,avi,mpeg,mpegts,ogg,flv,asf")


@dataclass(frozen=True)
class Options:
    """``fps``: frames a second. ``max_frames``: at most, of a film. ``max_side``: pixels of a
    frame's longer side, at most. ``sound``: whether films keep theirs."""

    fps: float = 2.0
    max_frames: int = 64
    max_side: int = 448
    sound: bool = True


@dataclass(frozen=True)
class Film:
    """``frames`` (JPEG) at ``times`` in seconds, and ``sound`` (FLAC) of ``seconds``, None for a
    silent film."""

    frames: list[bytes]
    times: list[float]
    sound: bytes | None
    seconds: float


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 0 done, 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.video", description=_DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--fps", type=_above_zero(float), default=Options.fps,
                        help="frames a second (default: %(default)g)")
    parser.add_argument("--max-frames", type=_above_zero(int), default=Options.max_frames,
                        metavar="N", help="of a film, at most (default: %(default)s)")
    parser.add_argument("--max-side", type=_above_zero(int), default=Options.max_side, metavar="N",
                        help="pixels of a frame's longer side, at most (default: %(default)s)")
    parser.add_argument("--sound", action=argparse.BooleanOptionalAction, default=True,
                        help="keep the sound of films that have one (default: yes)")
    parser.add_argument("--task", metavar="NAME", help="of records that name none (default: "
                        "film_caption or film_question, film_with_sound… where there is sound)")
    parser.add_argument("--shard-samples", type=_above_zero(int), default=200, metavar="N",
                        help="samples in a shard (default: %(default)s)")
    parser.add_argument("--max-bad", type=int, metavar="N",
                        help="stop with an error at more than N bad films (default: never)")
    args = parser.parse_args(argv)
    options = Options(args.fps, args.max_frames, args.max_side, args.sound)

    def body() -> int:
        written, bad = convert(args.sources, args.out, options, args.task, args.shard_samples,
                               args.max_bad)
        print(f"wrote {written} films to {args.out}, left out {bad}")
        return 0

    return guarded(body, "interrupted; whole shards are kept")


def _above_zero(kind: type):
    def parse(text: str):
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # in argparse's messages
    return parse


def convert(sources: list[Path], out: Path, options: Options, task: str | None,
            shard_samples: int, max_bad: int | None = None) -> tuple[int, int]:
    """Write the shards; how many films they hold and how many were left out. UserError without
    ffmpeg, for more than ``max_bad`` bad films, and when none can be used."""
    for tool in ("ffmpeg", "ffprobe"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not on PATH: it decodes the films; install ffmpeg (apt-get "
                            "install ffmpeg, conda install ffmpeg)")
    written = bad = 0
    refuse_used(out)
    with ShardWriter(out, max_samples=shard_samples) as writer:
        for number, (name, record, path, reason) in enumerate(_found(sources)):
            try:
                if record is None:
                    raise DataError(f"{name}: {reason}")
                if not str(record.get("text") or "").strip():
                    raise DataError(f"{name}: no text")
                film = read(path, options)
                record = {"task": task or _task(record, film)} | record | {
                    "frame_times": film.times, "source": path.parent.name}
                if film.sound is not None:
                    record["duration"] = film.seconds
                writer.write(f"{number:08d}", record, film.sound, film.sound and "flac",
                             frames=film.frames, image_extension="jpg")
                written += 1
            except DataError as error:
                print(f"bad: {error}", file=sys.stderr)
                bad += 1
                if max_bad is not None and bad > max_bad:
                    raise UserError(f"{bad} bad films, --max-bad {max_bad}") from error
    if not written:
        raise UserError(f"{', '.join(map(str, sources))}: nothing that can be used ({bad} left "
                        "out)")
    return written, bad


def _task(record: dict, film: Film) -> str:
    if film.sound is None:
        return "film_question" if record.get("question") else "film_caption"
    return "film_with_sound_question" if record.get("question") else "film_with_sound"


def _found(sources: list[Path]) -> Iterator[Found]:
    """The films in the order of the sources; a file that is named and is no film is a bad one."""
    for source in sources:
        if source.is_dir():
            yield from described(path for path in sorted(source.rglob("*")) if _is_film(path))
        elif not source.is_file():
            raise UserError(f"{source}: no such file or folder")
        elif not _is_film(source):
            yield str(source), None, source, f"none of .{', .'.join(FILMS)}"
        else:
            yield from described([source])


def _is_film(path: Path) -> bool:
    return path.suffix[1:].lower() in FILMS and path.is_file()


def read(path: Path, options: Options) -> Film:
    """A film's frames and sound. DataError for one without a picture or a length, for one that
    ends before its header says, and for whatever ffmpeg finds wrong with it."""
    length, has_sound = _header(path)
    rate = min(options.fps, options.max_frames / length)
    with TemporaryDirectory() as folder:
        # `up`: a frame is what is on the screen at its time, not what comes half a step later
        scale = f"scale=min({options.max_side}\\,iw):min({options.max_side}\\,ih)"
        _run(path, "-map", "0:V:0", "-frames:v", str(options.max_frames), "-q:v", "2", "-vf",
             f"fps={rate:.9f}:start_time=0:round=up,scale=trunc(iw*sar):ih,"
             f"{scale}:force_original_aspect_ratio=decrease,format=yuvj420p",
             f"{folder}/%06d.jpg")
        frames = [file.read_bytes() for file in sorted(Path(folder).glob("*.jpg"))]
        if not frames:
            raise DataError(f"{path}: no frame in it")
        sound, seconds = None, 0.0
        if has_sound and options.sound:
            _run(path, "-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar",
                 str(SAMPLE_RATE), f"{folder}/sound.wav")
            waveform = decode(f"{folder}/sound.wav", name=str(path))
            sound, seconds = encode(waveform, "flac"), len(waveform) / SAMPLE_RATE
    end = max(len(frames) / rate, seconds)
    if end < length - _SLACK_SECONDS - 2 / rate:
        raise DataError(f"{path}: cut short: it ends at {end:.1f} s, its header says "
                        f"{length:.1f} s")
    return Film(frames, [round(number / rate, 6) for number in range(len(frames))], sound,
                round(seconds, 4))


def _header(path: Path) -> tuple[float, bool]:
    """A film's length in seconds as its header says, and whether it has sound."""
    found = subprocess.run(
        ["ffprobe", *_SAFELY, "-of", "json", "-show_entries",
         "format=duration:stream=codec_type:stream_disposition=attached_pic", f"file:{path}"],
        capture_output=True)
    _refuse(path, found)
    header = json.loads(found.stdout)
    kinds = [stream.get("codec_type") for stream in header.get("streams", ())
             if not stream.get("disposition", {}).get("attached_pic")]
    if "video" not in kinds:
        raise DataError(f"{path}: no picture in it")
    length = float(header.get("format", {}).get("duration", 0))
    if length <= 0:
        raise DataError(f"{path}: its header does not say how long it is; write it anew: ffmpeg -i "
                        "FILE -c copy NEW.mkv")
    return length, "audio" in kinds


def _run(path: Path, *arguments: str) -> None:
    _refuse(path, subprocess.run(["ffmpeg", "-nostdin", *_SAFELY, "-i", f"file:{path}", *arguments],
                                 capture_output=True))


def _refuse(path: Path, done: subprocess.CompletedProcess) -> None:
    """DataError with the first thing that ffmpeg or ffprobe says is wrong; it goes on over damage
    and exits with 0."""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if said or done.returncode:
        raise DataError(f"{path}: ffmpeg: {said[0].strip() if said else f'exit {done.returncode}'}")


if __name__ == "__main__":
    sys.exit(main())
