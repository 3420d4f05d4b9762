"""The HTML report: self-contained, escaped, and whole whatever is missing."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwen3asr_train.evaluation.metrics import Utterance, score
from qwen3asr_train.evaluation.report import write_report
from qwen3asr_train.evaluation.report_attention import AttentionMap
from qwen3asr_train.evaluation.report_clips import (
    alignment_html,
    choose_clips,
    encode_ogg,
    log_mel_png,
    worst,
)
from qwen3asr_train.evaluation.report_svg import (
    format_duration,
    format_value,
    line_chart,
    metric_name,
    series_of,
    thin,
)
from qwen3asr_train.evaluation.report_windows import WindowScore

ATTACK = '<script>alert("x")</script>&"\''
VOID = {"meta", "img", "path", "circle", "rect", "br"}


class Page(HTMLParser):
    """Tags with their attributes; fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def utterance(key, reference, hypothesis, language="English", predicted="English", seconds=2.0):
    return Utterance(key, reference, hypothesis, language, predicted, seconds, "test")


UTTERANCES = [
    utterance("perfect", "all is well", "all is well"),
    utterance("wrong", "the cat sat down", "a cat sat upside down"),
    utterance("rtl", "مرحبا بالعالم", "مرحبا", "Arabic", "Persian"),
    utterance("characters", "今天天气", "今天天汽", "zh", "Chinese"),
    utterance("ghost", "", "thank you", None, None),
    utterance("silence", "", "", None, None),
]

# What only encoder pretraining has to show.
AUT = {
    "windows": [WindowScore("1 s", 1.0, False, 0.09, 0.08, 0.1)],
    "attention": {"perfect": AttentionMap(("all", " is", " well"), np.eye(3), 2.0, (1.0,))},
}


def write(tmp_path, **changes):
    arguments = {
        "title": "A run",
        "headline": {"wer": 0.1, "val/loss": 1.5},
        "history": [{"step": s, "train/loss": 2 / (s + 1)} for s in range(20)],
        "utterances": UTTERANCES,
        "clips": {u.key: np.zeros(1600, dtype=np.float32) for u in UTTERANCES},
        "config_yaml": "seed: 0\n",
        "environment": {"torch": "2.13"},
        "timings": {"train": 10.0, "evaluate": 2.0},
    } | changes
    path = tmp_path / "run" / "report.html"
    write_report(path, **arguments)
    html = path.read_text("utf-8")
    Page(html)
    return html


def test_page_is_self_contained_and_small(tmp_path):
    long_clips = {
        u.key: np.random.default_rng(0).normal(size=16_000 * 40).astype(np.float32) * 0.1
        for u in UTTERANCES
    }
    html = write(tmp_path, clips=long_clips, **AUT)
    assert len(html) < 3_000_000
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)
    page = Page(html)
    assert all(source.startswith("data:") for source in page.attributes("src"))
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert set(link[1:] for link in page.attributes("href")) <= set(page.attributes("id"))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "(the first 20 s)" in html


def test_everything_from_outside_is_escaped(tmp_path):
    html = write(
        tmp_path,
        title=ATTACK,
        headline={ATTACK: 1.0, f"{ATTACK}/English": 1.0},
        history=[{"step": s, f"{ATTACK}/loss": s, f"{ATTACK}2": s} for s in range(3)],
        utterances=[
            Utterance(ATTACK, ATTACK, f"{ATTACK} b", ATTACK, f"{ATTACK}?", 1.0, ATTACK),
            utterance("plain", "a b", ATTACK),
        ],
        clips={ATTACK: np.zeros(100, dtype=np.float32)},
        config_yaml=ATTACK,
        environment={ATTACK: ATTACK},
        timings={ATTACK: 1.0},
        windows=[WindowScore(ATTACK, 1.0, flag, 0.1, 0.1, 0.2) for flag in (False, True)],
        attention={ATTACK: AttentionMap((ATTACK, "\0\n\ud800"), np.full((2, 9), 1 / 9), 1.0)},
    )
    assert "<script" not in html and "\0" not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&quot;&#x27;" in html


def test_sections_follow_the_data(tmp_path):
    html = write(tmp_path, **AUT)
    sections = {"curves", "languages", "windows", "errors", "attention", "listen", "run"}
    assert sections <= set(Page(html).attributes("id"))
    empty = write(
        tmp_path,
        headline={},
        history=[],
        utterances=[],
        clips={},
        config_yaml="",
        environment={},
        timings={},
    )
    assert not sections & set(Page(empty).attributes("id"))
    assert "A run" in empty


def test_clips_without_utterances_and_utterances_without_errors(tmp_path):
    html = write(tmp_path, utterances=[], clips={"lost": np.zeros(10, dtype=np.float32)})
    assert "<audio" not in html
    html = write(tmp_path, utterances=UTTERANCES[:1])
    assert "No errors in any utterance." in html


def test_not_a_number_anywhere(tmp_path):
    html = write(
        tmp_path,
        headline={"wer": math.nan, "val/loss": math.inf},
        history=[
            {"step": 0, "train/loss": math.nan, "val/wer": None},
            {"step": math.nan, "train/loss": 1.0},
            {"train/loss": 1.0},
            {"step": 1, "train/loss": math.inf, "note": "text"},
            {"step": 2, "train/loss": 0.5},
        ],
        clips={
            "wrong": np.full(1600, math.nan, dtype=np.float32),
            "perfect": np.zeros(0, dtype=np.float32),
        },
        timings={"train": math.nan, "evaluate": 0.0},
        windows=[WindowScore("8 s", 8.0, False, math.nan, math.nan, math.inf)],
        attention={"wrong": AttentionMap(("a", "b"), np.full((2, 9), math.nan), 1.0)},
    )
    assert "nan" not in re.sub(r'"data:[^"]*"', "", html).lower()
    assert "The clip has no samples." in html


def test_language_table_names_the_measure(tmp_path):
    html = write(tmp_path)
    row = re.search(r'<th scope="row">Chinese</th>(.*?)</tr>', html)[1]
    assert ">CER<" in row and "25.00 %" in row
    row = re.search(r'<th scope="row">English</th>(.*?)</tr>', html)[1]
    assert ">WER<" in row
    row = re.search(r'<th scope="row">No language</th>(.*?)</tr>', html)[1]
    assert "text on no speech" in row and "50.00 %" in row


def test_interval_stands_only_beside_the_error_rate_of_these_utterances(tmp_path):
    assert "95 %:" not in write(tmp_path, headline={"wer": 0.9876})
    rate = score(UTTERANCES)["wer"]
    assert "words, or characters by language; 95 %:" in write(tmp_path, headline={"wer": rate})


def test_writing_is_atomic_and_survives_lone_surrogates(tmp_path):
    html = write(tmp_path, title="broken \ud800 text")
    assert "broken ? text" in html
    with pytest.raises(AttributeError):
        write(tmp_path, config_yaml=None)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["report.html"]
    assert (tmp_path / "run" / "report.html").read_text("utf-8") == html


def test_worst_and_chosen_clips():
    assert [u.key for u in worst(UTTERANCES, 3)] == ["ghost", "wrong", "rtl"]
    keys = [u.key for u in UTTERANCES]
    assert [u.key for u in choose_clips(UTTERANCES, keys, 2)] == ["ghost", "perfect"]
    assert [u.key for u in choose_clips(UTTERANCES, ["rtl", "unknown"], 4)] == ["rtl"]
    many = choose_clips(UTTERANCES, keys, 5)
    assert [u.key for u in many] == ["ghost", "wrong", "rtl", "perfect", "silence"]


def test_alignment_marks_operations_without_colour_and_folds_long_matches():
    html = alignment_html(UTTERANCES[1])
    assert re.findall(r'data-op="(.)"', html) == ["S", "I"]
    assert 'dir="auto"' in html
    words = " ".join(f"w{'x' * (n % 5)}" for n in range(60))
    html = alignment_html(utterance("long", f"{words} end", f"{words} stop"))
    assert "⋯ 52 ⋯" in html and html.count('class="cell equal"') == 8
    html = alignment_html(utterance("loop", "a", "b " * 1000, "German"))
    assert html.count("<span class=") <= 161 and "840 more" in html


def test_sound_and_picture_can_be_decoded():
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    samples, rate = soundfile.read(io.BytesIO(encode_ogg(tone)))
    assert rate == 16_000 and len(samples) == 16_000
    assert np.corrcoef(samples, tone)[0, 1] > 0.95
    picture = Image.open(io.BytesIO(log_mel_png(tone))).convert("L")
    assert picture.height == 128
    brightest_row = int(np.asarray(picture, dtype=float).mean(axis=1).argmax())
    # 1 kHz lies a bit above a third of the slaney mel scale up to 8 kHz, low frequencies below.
    assert 128 * 0.55 < brightest_row < 128 * 0.7


def test_page_embeds_what_decodes(tmp_path):
    page = Page(write(tmp_path))
    kinds = {source.split(",")[0] for source in page.attributes("src")}
    assert kinds == {"data:image/png;base64", "data:audio/ogg;base64"}
    for source in page.attributes("src"):
        assert base64.b64decode(source.split(",")[1], validate=True)


def test_thinning_keeps_ends_and_spikes():
    points = [(float(s), 1.0) for s in range(10_000)]
    points[4321] = (4321.0, 99.0)
    thinned = thin(points)
    assert len(thinned) <= 500
    assert thinned[0] == points[0] and thinned[-1] == points[-1] and points[4321] in thinned
    assert thinned == sorted(thinned)
    assert thin(points[:10]) == points[:10]


VALUES = st.floats(-1e12, 1e12, allow_subnormal=False) | st.floats(1e-12, 1e-3) | st.just(0.1)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**7), VALUES), min_size=1, max_size=90))
def test_charts_stay_inside_their_frame(rows):
    curves = series_of([{"step": step, "loss": value} for step, value in rows])
    html = line_chart("Loss", curves)
    Page(html)
    drawn = re.search(r'role="img".*', html)[0]
    for x, y in re.findall(r'c?x="([-\d.]+)" c?y="([-\d.]+)"', drawn):
        assert 0 <= float(x) <= 560 and 0 <= float(y) <= 254
    for path in re.findall(r'class="curve[^"]*" d="M([^"]*)"', drawn):
        for x, y in (pair.split() for pair in path.split("L")):
            assert 55 <= float(x) <= 541 and 11 <= float(y) <= 221


def test_long_history_gives_a_small_log_chart_with_values_to_point_at():
    rng = np.random.default_rng(0)
    rows = [{"step": s, "train/loss": 100 / s * rng.uniform(0.8, 1.2)} for s in range(1, 20_000)]
    html = line_chart("Loss", series_of(rows))
    assert "log scale" in html and len(html) < 60_000
    assert "<title>step 1\ntrain/loss: " in html


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("val/wer/English", 0.0512, "5.12 %"),
        ("lid_accuracy", 1.0, "100.00 %"),
        ("audio_seconds", 3725.0, "1 h 02 min"),
        ("utterances", 12345.0, "12,345"),
        ("loss", 1.23456, "1.235"),
        ("lr", 3e-5, "3e-05"),
        ("wer", math.nan, "–"),
    ],
)
def test_format_value(key, value, shown):
    assert format_value(key, value) == shown


def test_names_and_durations():
    assert metric_name("val/librispeech/wer") == metric_name("wer/None") == "wer"
    assert metric_name("English") == "English"
    assert [format_duration(s) for s in (3.21, 59.99, 125, 3600, math.inf)] == [
        "3.2 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 00 min",
        "–",
    ]
