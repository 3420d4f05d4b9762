"""Files of aligned words, read back with other people's readers."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.decoding.alignment import Aligned
from qwen3asr_train.decoding.alignment_formats import as_text

SPANS = [Aligned("it's", 0.08, 0.4), Aligned("关", 0.4, 0.4), Aligned('"<b>"', 0.4, 0.72),
         Aligned("on", 3661.5, 3661.58)]
OPTIONS = {"name": "a folder/my file.wav", "duration": 3662.0, "language": "English",
           "level": "word"}


def test_json():
    read = json.loads(as_text("json", SPANS, **OPTIONS))
    assert [tuple(word.values()) for word in read["words"]] == [tuple(span) for span in SPANS]
    assert read["language"] == "English" and read["duration"] == 3662.0


def test_subtitles():
    srt = as_text("srt", [*SPANS, Aligned("two\n\nlines", 3661.6, 3661.7)], **OPTIONS)
    blocks = srt.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == ["1", "2", "3", "4", "5"]
    assert blocks[0] == "1\n00:00:00,080 --> 00:00:00,400\nit's"
    assert "01:01:01,500 --> 01:01:01,580" in srt and blocks[4].endswith("two lines")
    vtt = as_text("vtt", SPANS, **OPTIONS)
    assert vtt.startswith("WEBVTT\n\n00:00:00.080 --> 00:00:00.400\nit's\n\n")
    assert '"&lt;b&gt;"' in vtt


def test_ctm():
    rows = [line.split() for line in as_text("ctm", SPANS, **OPTIONS).splitlines()]
    assert rows[0] == ["my_file", "1", "0.080", "0.320", "it's"] and {len(r) for r in rows} == {5}


times = st.lists(st.integers(0, 100), min_size=2, max_size=20).filter(lambda x: len(x) % 2 == 0)


@settings(deadline=None, max_examples=50)
@given(times)
def test_textgrid(drawn):
    praat = pytest.importorskip("praatio.textgrid")
    ordered = sorted(drawn)
    spans = [Aligned(f"w{i}", 0.08 * a, 0.08 * b)
             for i, (a, b) in enumerate(zip(ordered[::2], ordered[1::2], strict=True))]
    text = as_text("textgrid", spans, name="x", duration=8.0, language=None, level="word")
    assert text.startswith('File type = "ooTextFile"')
    assert re.findall(r'text = "(w\d+)"', text) == [span.text for span in spans]
    bounds = [float(x) for x in re.findall(r"xmin = ([\d.]+) ?\n\s+xmax", text)]
    assert bounds[2:] == sorted(bounds[2:]) and praat


def test_an_unknown_format():
    with pytest.raises(ValueError, match="json, textgrid"):
        as_text("ass", SPANS, **OPTIONS)
