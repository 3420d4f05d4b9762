"""The report's alignment: well-formed pictures, escaped words, figures under their names."""

import re
from xml.etree import ElementTree

import numpy as np

from qwen3asr_train.evaluation.alignment import clip_of
from qwen3asr_train.evaluation.report_alignment import (
    AlignmentPicture,
    AlignmentReport,
    alignment_page,
    alignment_section,
    picture,
)

WAVEFORM = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
CLIP = AlignmentPicture("<key>", WAVEFORM, ["<b>", "关", "incomprehensibilities"],
                        [(0.0, 0.4), (0.4, 0.4), (0.5, 0.6)], [(0.1, 0.4), None, (0.5, 0.7)])


def test_a_picture_is_well_formed():
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", picture(CLIP))[0])
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["<b>: 0.00 to 0.40 s (found)", "关: 0.40 to 0.40 s (found)",
                      "incomprehensibilities: 0.50 to 0.60 s (found)",
                      "<b>: 0.10 to 0.40 s (right)",
                      "incomprehensibilities: 0.50 to 0.70 s (right)"]
    shown = [text.text for group in svg.iter("g") for text in group.iter("text")]
    assert shown[0] == "<b>" and "incomp".startswith(shown[2][:3]) and len(shown[2]) < 12
    assert "<b>" not in picture(CLIP) and alignment_page(CLIP).startswith("<!doctype html>")


def test_clips_without_audio_or_words():
    assert picture(AlignmentPicture("x", WAVEFORM[:0], [], [])) == ""
    assert "<svg" in picture(AlignmentPicture("x", WAVEFORM, [], []))


def test_figures_and_their_names():
    report = AlignmentReport(0.08)
    clip = clip_of("a", "English", 3.0, ["x"], [(0.0, 0.5)], [(0.02, 0.4)])
    report.add("clips", "", [clip])
    report.add("clips", "ctc", [clip])
    report.add("joined_60s", "", [clip])
    assert {"test/aas_ms", "test/ctc_aas_ms", "test/joined_60s/aas_ms"} <= report.metrics.keys()
    html = alignment_section(report)
    assert html.count("60.0 ms") >= 3 and "joined 60s" in html and "this model" in html
    assert alignment_section(None) == ""
