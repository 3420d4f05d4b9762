"""Error rate by attention window: the same figures in the plot and in the table."""

import math
import re
from itertools import pairwise

from qwen3asr_train.evaluation.report_windows import WindowScore, windows_section

SCORES = [
    WindowScore("8 s", 8.0, False, 0.05, 0.04, 0.06),
    WindowScore("streaming, 2 s", 2.0, True, 0.07, 0.06, 0.08),
    WindowScore("1 s", 1.0, False, 0.08, 0.07, 0.09),
    WindowScore("2 s", 2.0, False, 0.06, 0.05, 0.07),
    WindowScore("4 s", 4.0, False, 0.048, 0.04, 0.055),
]


def rows(html):
    table = re.search("<tbody>(.*)</tbody>", html)[1]
    return [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("</tr>")[:-1]]


def test_table_goes_by_window_and_compares_with_the_longest():
    html = windows_section(SCORES)
    assert '<th scope="col">Against 8 s</th>' in html
    found = rows(html)
    assert [row[0] for row in found] == ["1 s", "2 s", "4 s", "8 s", "streaming, 2 s"]
    assert found[0][1:] == ["8.00 %", "7.00 to 9.00 %", "+60.0 %"]
    assert [row[3] for row in found[1:3]] == ["+20.0 %", "-4.0 %"]
    assert "reference" in found[3][3]
    assert found[4][1:] == ["7.00 %", "6.00 to 8.00 %", "+40.0 %"]


def test_windows_are_drawn_by_octave_with_their_intervals():
    html = windows_section(SCORES)
    plot = re.search('role="img".*?</svg>', html, re.DOTALL)[0]
    places = [float(x) for x in re.findall(r'<circle class="dot s0" cx="([\d.]+)"', plot)]
    steps = [b - a for a, b in pairwise(places)]
    assert len(steps) == 3 and max(steps) - min(steps) < 0.2
    assert html.count('class="whisker s0"') == 4 and html.count('class="whisker s1"') == 1
    assert "<title>2 s: 6.00 % (95 %: 5.00 to 7.00 %)\nstreaming, 2 s: 7.00 %" in html
    assert [f">{n} s</text>" in html for n in (1, 2, 4, 8)] == [True] * 4
    for y in re.findall(r'class="whisker s\d" d="M[\d.]+ ([\d.]+)V', html):
        assert 12 <= float(y) <= 220


def test_legend_only_where_there_are_two_series():
    assert 'class="legend"' in windows_section(SCORES)
    assert 'class="legend"' not in windows_section([w for w in SCORES if not w.streaming])
    assert 'class="legend"' not in windows_section([w for w in SCORES if w.streaming])


def test_what_cannot_be_drawn_stands_in_the_table():
    assert windows_section([]) == ""
    unlimited = WindowScore("unlimited", math.inf, False, 0.04, math.nan, math.nan)
    broken = WindowScore("?", math.nan, True, math.nan, math.nan, math.nan)
    html = windows_section([*SCORES, unlimited, broken])
    assert "Against unlimited" in html and html.count('class="whisker') == 5
    assert rows(html)[-1] == ["?", "–", "–", "–"]
    assert "nan" not in html
    assert "<svg" not in windows_section([unlimited, broken])


def test_no_comparison_without_a_reference():
    perfect = WindowScore("8 s", 8.0, False, 0.0, 0.0, 0.0)
    html = windows_section([perfect])
    assert "Against" not in html and ">0 %</text>" in html and ">-" not in html
    assert "Against" not in windows_section([w for w in SCORES if w.streaming])
