"""Miniature copies of the public corpora, each in the layout in which it is distributed.

Audio is 0.3 s of a tone; recordings that are cut into segments have 2 s.
"""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from qwen3asr_train.data.audio import encode

Expected = dict[str, dict[str, tuple]]
"""folder below OUT -> key -> (text, language, meta)"""


@dataclass(frozen=True)
class Miniature:
    """How to build a corpus, and what must come of it."""

    build: Callable[[Path], None]
    records: Expected
    bad: dict[str, dict[str, str]] = field(default_factory=dict)  # … -> key -> part of the reason
    broken: str = ""  # what a wrong layout lacks: removed, and named by the error
    arguments: tuple[str, ...] = ()


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(16000 * seconds)) / 4)).astype(np.float32)


def put(path: Path, content: str | bytes | float) -> None:
    """A file: text, bytes, or seconds of a tone in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".sph":
        soundfile.write(path, tone(content), 16000, format="NIST", subtype="PCM_16")
    else:
        path.write_bytes(encode(tone(content), path.suffix[1:]))


def lines(*rows: str | tuple[str, ...], separator: str = "\t") -> str:
    return "".join((row if isinstance(row, str) else separator.join(row)) + "\n" for row in rows)


def librispeech(root: Path) -> None:
    for split, chapter in (("test-clean", "61/70968"), ("test-other", "367/130732")):
        name = chapter.replace("/", "-")
        put(root / split / chapter / f"{name}.trans.txt",
            lines(f"{name}-0000 A FIRST LINE", f"{name}-0001 ANOTHER"))
        put(root / split / chapter / f"{name}-0000.flac", 0.3)


def aishell1(root: Path) -> None:
    keys = [f"BAC009S0764W012{number}" for number in range(3)]
    put(root / "transcript/aishell_transcript_v0.8.txt",
        lines(f"{keys[0]} 甚至 出现", f"{keys[1]} 交易", "BAC009S0002W0122 训练"))
    for key in keys[:1] + keys[2:]:
        put(root / f"wav/test/S0764/{key}.wav", 0.3)
    put(root / f"wav/test/S0764/{keys[1]}.wav", b"")
    put(root / "wav/train/S0002/BAC009S0002W0122.wav", 0.3)


def aishell2(root: Path) -> None:
    for folder, key in (("test", "IT0011W0001"), ("data", "IC0001W0061")):
        speaker = "T0011" if folder == "test" else "C0001"
        put(root / folder / "trans.txt", lines((key, "听流年"), (key[:-1] + "9", "没有")))
        put(root / folder / "wav.scp", lines((key, f"wav/{speaker}/{key}.wav")))
        put(root / folder / f"wav/{speaker}/{key}.wav", 0.3)


def kespeech(root: Path) -> None:
    folder = root / "Tasks/ASR/test"
    put(folder / "wav.scp", lines("1_a Audio/1/phase1/1_a.wav", "2_b Audio/2/phase1/2_b.wav"))
    put(folder / "text", lines("1_a 今天<SPOKEN_NOISE>去", "2_b 明天"))
    put(folder / "utt2spk", lines("1_a 1", "2_b 2"))
    put(folder / "utt2subdialect", lines("1_a Southwestern", "2_b Zhongyuan"))
    put(root / "Audio/1/phase1/1_a.wav", 0.3)


def manifest(text: str, subsets: dict[str, str], segments: list[dict]) -> str:
    """A manifest as WenetSpeech's and GigaSpeech's, in which every segment takes 0.3 s."""
    rows = [{"begin_time": round(0.5 * at, 2), "end_time": round(0.5 * at + 0.3, 2)} | row
            for at, row in enumerate(segments)]
    for row in rows:
        row["subsets"] = [subsets[name] for name in row["subsets"]]
        row[text] = row.pop("words")
    audios = [{"title": "\"audios\": [x]", "aid": "A", "path": "audio/a/A.opus", "segments": rows},
              {"aid": "B", "path": "audio/a/B.opus", "segments": [rows[0] | {"sid": "B_1"}]}]
    return json.dumps({"dataset": "D", "audios": audios, "end": []}, ensure_ascii=False, indent=4)


def wenetspeech(root: Path) -> None:
    put(root / "WenetSpeech.json", manifest("text", {"N": "TEST_NET", "M": "TEST_MEETING"}, [
        {"sid": "A_1", "words": "网络", "subsets": "N"},
        {"sid": "A_2", "words": "会议 text", "subsets": "M"},
        {"sid": "A_3", "words": "坏", "subsets": "N", "end_time": "?"},
        {"sid": "A_4", "words": "太远", "subsets": "M", "begin_time": 99, "end_time": 100}]))
    put(root / "audio/a/A.opus", 2.0)


def gigaspeech(root: Path) -> None:
    put(root / "GigaSpeech.json", manifest("text_tn", {"T": "{TEST}", "X": "{XL}", "L": "{L}"}, [
        {"sid": "A_1", "words": "FOUR <COMMA> I SAID <PERIOD>", "subsets": "T", "speaker": "N/A"},
        {"sid": "A_2", "words": "<MUSIC>", "subsets": "T"},
        {"sid": "A_3", "words": "WHO'S THERE <QUESTIONMARK>", "subsets": "T", "speaker": "S1"},
        {"sid": "A_4", "words": "TRAINING", "subsets": "XL"}]))
    put(root / "audio/a/A.opus", 2.0)


def fleurs(root: Path) -> None:
    for folder, text in {"en_us": "A line, of two.", "cmn_hans_cn": "一行。", "yue_hant_hk": "一行",
                         "af_za": "’n"}.items():
        put(root / folder / "test.tsv", lines(
            *((str(n), f"{n}.wav", text, text.lower(), "a | b |", "4800", "FEMALE")
              for n in (1, 2)), ("3", "3.wav", "too few")))
    put(root / "en_us/audio/test/1.wav", 0.3)
    for folder in ("cmn_hans_cn", "yue_hant_hk", "af_za"):
        (root / folder / "audio").mkdir()
        with tarfile.open(root / folder / "audio/test.tar.gz", "w:gz") as tar:
            for name in ("0.wav", "1.wav"):
                member, content = tarfile.TarInfo(f"test/{name}"), encode(tone(0.3), "wav")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def common_voice(root: Path) -> None:
    header = ("client_id", "path", "sentence", "up_votes", "age", "gender", "locale")
    for folder, text in {"zh-HK": "返學", "zh-TW": "上學", "ka": "და"}.items():
        put(root / folder / "test.tsv", lines(
            header, ("c1", f"common_voice_{folder}_1.mp3", text, "2", "", "", folder),
            ("c2", f"common_voice_{folder}_2.mp3", '"q', "2", "", "male_masculine", folder)))
        put(root / folder / f"clips/common_voice_{folder}_1.mp3", 0.3)
        put(root / folder / f"clips/common_voice_{folder}_2.mp3", 0.3)


def mls(root: Path) -> None:
    for folder, extension in (("mls_german", "flac"), ("mls_polish_opus", "opus")):
        put(root / folder / "test/transcripts.txt",
            lines(("1_2_000000", "ein wort"), ("1_2_000001", "fehlt")))
        put(root / folder / f"test/audio/1/2/1_2_000000.{extension}", 0.3)


def voxpopuli(root: Path) -> None:
    header = ("id", "raw_text", "normalized_text", "speaker_id", "split", "gender",
              "is_gold_transcript", "accent")
    for folder, accent in (("en", "None"), ("en_accented", "en_nl"), ("hr", "None")):
        put(root / folder / "asr_test.tsv", lines(
            header, ("20180613-x-1", "", "thank you", "7", "test", "male", "True", accent),
            ("20180613-x-2", "", "", "None", "test", "male", "True", accent)))
        put(root / folder / "2018/20180613-x-1.ogg", 0.3)
        put(root / folder / "2018/20180613-x-2.ogg", 0.3)


def tedlium(root: Path) -> None:
    folder = root / "legacy/test"
    put(folder / "stm/Ann_2009.stm", lines(
        ";; LABEL", "Ann_2009 1 Ann_2009 0.00 0.50 <F0_F> ignore_time_segment_in_scoring",
        "Ann_2009 1 Ann_2009 0.50 0.80 <o,f0,female> {NOISE} it 's for(2) <unk> <sil> us",
        "Ann_2009 1 Ann_2009 1.20 1.50 <o,f0,female> we did (Ann_2009-1.20-1.50-F0_F)",
        "Ann_2009 1 Ann_2009 start"))
    put(folder / "sph/Ann_2009.sph", 2.0)
    put(folder / "stm/Bob_2010.stm", lines("Bob_2010 1 Bob_2010 0.00 0.30 <o,f0,male> a"))
    put(folder / "sph/Bob_2010.sph", b"NIST_1A\n   1024\nsample_coding -s26 "
        b"pcm,embedded-shorten-v2.00\nsample_count -i 9\nend_head\n".ljust(2048))
    put(folder / "stm/Cy_2011.stm", lines("Cy_2011 1 Cy_2011 0.00 0.30 <o,f0,male> a wav"))
    put(folder / "sph/Cy_2011.wav", 0.3)


def opencpop(root: Path) -> None:
    rest = "g an|G#4|0.1 0.2|0.1 0.2|0 0"
    put(root / "segments/test.txt", lines(f"2044001628|感受|{rest}", f"2044001629|没有|{rest}",
                                          "2044001630|少"))
    put(root / "segments/wavs/2044001628.wav", 0.3)


def m4singer(root: Path) -> None:
    names = ["Alto-2#岁月神偷#0000", "Tenor-1#童话#0001", "Alto-1#美错#0000", "x"]
    put(root / "meta.json", json.dumps([{"item_name": n, "txt": n[-4:]} for n in names]
                                       + [{"item_name": "Tenor-1#童话#0002", "txt": "梦"}]))
    put(root / "Alto-2#岁月神偷/0000.wav", 0.3)
    put(root / "Tenor-1##U7ae5#U8bdd/0001.wav", 0.3)
    put(root / "Alto-1#美错/0000.wav", 0.3)


MISSING = "no such audio file"
MINIATURES = {
    "librispeech": Miniature(
        librispeech, broken="test-other/*/*/*.trans.txt",
        records={"test-clean": {"61-70968-0000": ("A FIRST LINE", "English", {"speaker": "61"})},
                 "test-other": {"367-130732-0000": ("A FIRST LINE", "English",
                                                    {"speaker": "367"})}},
        bad={"test-clean": {"61-70968-0001": MISSING}, "test-other": {"367-130732-0001": MISSING}}),
    "aishell1": Miniature(
        aishell1, broken="transcript/aishell_transcript_v0.8.txt",
        records={"test": {"BAC009S0764W0120": ("甚至出现", "Chinese", {"speaker": "S0764"})}},
        bad={"test": {"BAC009S0764W0121": "not readable", "BAC009S0764W0122": "no transcript"}}),
    "aishell2": Miniature(
        aishell2, broken="test/wav.scp", arguments=("--split", "test,train"),
        records={"test": {"IT0011W0001": ("听流年", "Chinese", {"speaker": "T0011"})},
                 "train": {"IC0001W0061": ("听流年", "Chinese", {"speaker": "C0001"})}},
        bad={"test": {"IT0011W0009": "not in segments"},
             "train": {"IC0001W0069": "not in segments"}}),
    "kespeech": Miniature(
        kespeech, broken="Tasks/ASR/test/utt2subdialect",
        records={"test": {"1_a": ("今天去", "Chinese", {"speaker": "1",
                                                      "dialect": "Southwestern"})}},
        bad={"test": {"2_b": MISSING}}),
    "wenetspeech": Miniature(
        wenetspeech, broken="WenetSpeech.json",
        records={"test_net": {"A_1": ("网络", "Chinese", {})},
                 "test_meeting": {"A_2": ("会议 text", "Chinese", {})}},
        bad={"test_net": {"A_3": "malformed segment", "B_1": MISSING},
             "test_meeting": {"A_4": "the recording has 2.00 s"}}),
    "gigaspeech": Miniature(
        gigaspeech, broken="audio", arguments=("--split", "test,xl"),
        records={"test": {"A_1": ("FOUR, I SAID.", "English", {}),
                          "A_3": ("WHO'S THERE?", "English", {"speaker": "S1"})},
                 "xl": {"A_4": ("TRAINING", "English", {})}},
        bad={"test": {"B_1": MISSING}}),
    "fleurs": Miniature(
        fleurs, broken="en_us/test.tsv", arguments=("--only", "en_us,cmn_hans_cn,yue_hant_hk"),
        records={"en_us/test": {"en_us-1": ("A line, of two.", "English", {"gender": "female"})},
                 "cmn_hans_cn/test": {"cmn_hans_cn-1": ("一行。", "Chinese",
                                                        {"gender": "female"})},
                 "yue_hant_hk/test": {"yue_hant_hk-1": ("一行", "Cantonese",
                                                        {"gender": "female"})}},
        bad={"en_us/test": {"en_us-2": MISSING, "test-line-3": "3 columns, not 7"},
             "cmn_hans_cn/test": {"cmn_hans_cn-2": "not in", "test-line-3": "3 columns, not 7"},
             "yue_hant_hk/test": {"yue_hant_hk-2": "not in", "test-line-3": "3 columns, not 7"}}),
    "common_voice": Miniature(
        common_voice, broken="*/clips",
        records={folder: {f"common_voice_{code}_1": (text, language, {"speaker": "c1"}),
                          f"common_voice_{code}_2": ('"q', language, {
                              "speaker": "c2", "gender": "male_masculine"})}
                 for folder, code, text, language in (
                     ("zh-HK/test", "zh-HK", "返學", "Cantonese"),
                     ("zh-TW/test", "zh-TW", "上學", "Chinese"))}),
    "mls": Miniature(
        mls, broken="mls_*/*/transcripts.txt",
        records={"mls_german/test": {"1_2_000000": ("ein wort", "German", {"speaker": "1"})},
                 "mls_polish/test": {"1_2_000000": ("ein wort", "Polish", {"speaker": "1"})}},
        bad={"mls_german/test": {"1_2_000001": MISSING},
             "mls_polish/test": {"1_2_000001": MISSING}}),
    "voxpopuli": Miniature(
        voxpopuli, broken="*/asr_*.tsv",
        records={f"{folder}/test": {"20180613-x-1": ("thank you", "English", {
            "speaker": "7", "gender": "male"} | extra)}
            for folder, extra in (("en", {}), ("en_accented", {"accent": "en_nl"}))},
        bad={"en/test": {"20180613-x-2": "empty text"},
             "en_accented/test": {"20180613-x-2": "empty text"}}),
    "tedlium": Miniature(
        tedlium, broken="legacy/test/stm/*.stm",
        records={"test": {"Ann_2009-0000050-0000080": ("it's for us", "English",
                                                       {"speaker": "Ann_2009"}),
                          "Ann_2009-0000120-0000150": ("we did", "English",
                                                       {"speaker": "Ann_2009"}),
                          "Cy_2011-0000000-0000030": ("a wav", "English",
                                                      {"speaker": "Cy_2011"})}},
        bad={"test": {"Ann_2009-line-5": "no start and end", "Bob_2010-line-1": "sph2pipe"}}),
    "opencpop": Miniature(
        opencpop, broken="segments/test.txt",
        records={"test": {"2044001628": ("感受", "Chinese", {"song": "2044"})}},
        bad={"test": {"2044001629": MISSING, "test-line-3": "2 columns, not 7"}}),
    "m4singer": Miniature(
        m4singer, broken="meta.json", arguments=("--split", "all"),
        records={"test": {"Alto-2_岁月神偷_0000": ("0000", "Chinese", {
            "speaker": "Alto-2", "song": "Alto-2#岁月神偷"}),
            "Tenor-1_童话_0001": ("0001", "Chinese", {
                "speaker": "Tenor-1", "song": "Tenor-1#童话"})},
            "train": {"Alto-1_美错_0000": ("0000", "Chinese", {
                "speaker": "Alto-1", "song": "Alto-1#美错"})}},
        bad={"test": {"Tenor-1_童话_0002": MISSING}, "train": {"x": "SINGER#SONG#NUMBER"}}),
}
