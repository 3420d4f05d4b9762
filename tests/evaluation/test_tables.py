"""Tables of test suites: numbers against hand computation, files read back."""

import csv
import json
import math
import re

import pytest

from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.metrics import Utterance, score
from qwen3asr_train.evaluation.tables import MISSING, Row, markdown, with_averages, write_tables


def row(test_set, condition="offline", wer=0.1, suite="librispeech", paper=None, **metrics):
    return Row(suite, test_set, condition, {"wer": wer} | metrics, paper or {})


ROWS = [
    row("clean", wer=0.0211, wer_low=0.02, wer_high=0.0225, lid_accuracy=0.99, utterances=10,
        paper={"0.6B": 0.0211, "1.7B": 0.0163}),
    row("other", wer=0.0501, wer_low=0.04, wer_high=0.06, lid_accuracy=0.97, utterances=30,
        paper={"0.6B": 0.0455}),
    row("clean", "streaming", wer=0.03, paper={"0.6B": 0.0254}),
    row("clean", "snr_0", wer=0.2),
    row("clean", "snr_10", wer=0.1),
    row("clean", "snr_-5", wer=0.4),
    row("names", "relevant", suite="context", entity_recall=0.9, false_alarm=0.01),
    row("names", "distractors", suite="context", entity_recall=0.7),
]
AVERAGES = {"Average": ["clean", "other"], "Never": ["clean", "absent"]}


def tables(text):
    """Title -> list of rows of cells, the head first."""
    found = {}
    for part in text.split("## ")[1:]:
        title, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
        assert len({len(cells) for cells in rows}) == 1, f"columns differ in {title}"
        assert all(set(cell) <= {":", "-"} for cell in rows[1])
        found[title] = [rows[0], *rows[2:]]
    return found


def test_averages_are_of_sets_and_need_all_of_them():
    *same, average = with_averages(ROWS, AVERAGES)
    assert same == ROWS
    assert (average.suite, average.test_set, average.condition) == (
        "librispeech", "Average", "offline")
    assert average.average_of == ("clean", "other")
    assert average.metrics == pytest.approx(
        {"wer": (0.0211 + 0.0501) / 2, "lid_accuracy": 0.98, "utterances": 40})
    assert average.paper == pytest.approx({"0.6B": (0.0211 + 0.0455) / 2})


def test_averages_of_each_condition_and_suite():
    rows = [row(name, condition, wer, suite) for suite in ("a", "b") for condition, wer, name in (
        ("offline", 0.1, "x"), ("offline", 0.3, "y"), ("streaming", 0.2, "x"),
        ("streaming", 0.6, "y"))]
    made = with_averages(rows, {"Mean": ["x", "y"]})[len(rows):]
    assert [(r.suite, r.condition, r.metrics["wer"]) for r in made] == [
        ("a", "offline", pytest.approx(0.2)), ("a", "streaming", pytest.approx(0.4)),
        ("b", "offline", pytest.approx(0.2)), ("b", "streaming", pytest.approx(0.4))]


def test_a_figure_that_one_set_lacks_has_no_average():
    rows = [row("x", wer=math.nan, cer=0.1), row("y", wer=0.1, cer=0.3)]
    assert with_averages(rows, {"Mean": ["x", "y"]})[-1].metrics == {"cer": pytest.approx(0.2)}


@pytest.mark.parametrize(
    ("averages", "message"),
    [({"Mean": []}, "'Mean' names no test set"), ({"clean": ["other"]}, "the name of a test set")],
)
def test_bad_averages(averages, message):
    with pytest.raises(UserError, match=message):
        with_averages(ROWS, averages)


def test_a_row_that_is_there_twice(tmp_path):
    with pytest.raises(UserError, match="two results of librispeech clean under offline"):
        write_tables([*ROWS, ROWS[0]], tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_read_back(tmp_path):
    rows = with_averages([*ROWS, row("a,b\n\"c\"", wer=math.nan, mer=math.inf)], AVERAGES)
    write_tables(rows, tmp_path / "new")
    folder = tmp_path / "new"
    assert {path.name for path in folder.iterdir()} == {"suite.json", "suite.csv", "suite.md"}

    listed = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    assert listed[8]["metrics"] == {"wer": None, "mer": None}
    del listed[8]
    read = [Row(**entry | {"average_of": tuple(entry["average_of"])}) for entry in listed]
    assert read == rows[:8] + rows[9:]

    with open(folder / "suite.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["suite", "set", "condition", "metric", "value"]
    numbers = {(r["suite"], r["set"], r["condition"], r["metric"]): float(r["value"])
               for r in lines}
    expected = {(r.suite, r.test_set, r.condition, name): value for r in rows
                for name, value in (r.metrics | {f"paper/{m}": v for m, v in r.paper.items()}
                                    ).items() if math.isfinite(value)}
    assert len(lines) == len(numbers)
    assert numbers == expected

    assert (folder / "suite.md").read_text(encoding="utf-8") == markdown(rows)
    write_tables(rows[:1], folder)
    assert len(json.loads((folder / "suite.json").read_text(encoding="utf-8"))) == 1


def test_suite_table():
    found = tables(markdown(with_averages(ROWS, AVERAGES)))
    assert list(found) == ["librispeech", "context", "Offline against streaming", "Noise",
                           "Contexts and sounds"]
    assert found["librispeech"] == [
        ["Test set", "offline", "streaming", "LID offline", "0.6B (paper, offline)",
         "0.6B (paper, streaming)", "1.7B (paper)"],
        ["clean", "2.11 (2.00–2.25)", "3.00", "99.00", "2.11", "2.54", "1.63"],
        ["other", "5.01 (4.00–6.00)", MISSING, "97.00", "4.55", MISSING, MISSING],
        ["**Average**", "**3.56**", MISSING, "**98.00**", "**3.33**", MISSING, MISSING],
    ]


def test_tables_across_suites():
    found = tables(markdown(with_averages(ROWS, AVERAGES)))
    assert found["Offline against streaming"] == [
        ["Suite", "Test set", "offline", "streaming", "ratio", "0.6B ratio (paper)"],
        ["librispeech", "clean", "2.11 (2.00–2.25)", "3.00", "1.42", "1.20"],
    ]
    assert found["Noise"] == [
        ["Suite", "Test set", "offline", "10 dB", "0 dB", "-5 dB"],
        ["librispeech", "clean", "2.11 (2.00–2.25)", "10.00", "20.00", "40.00"],
    ]
    assert found["Contexts and sounds"] == [
        ["Suite", "Test set", "Condition", "Error rate", "Entity recall", "False alarm",
         "Orders obeyed", "Sounds without text"],
        ["context", "names", "relevant", "10.00", "90.00", "1.00", MISSING, MISSING],
        ["context", "names", "distractors", "10.00", "70.00", MISSING, MISSING, MISSING],
    ]


def test_averages_come_last_and_bold_in_every_table():
    rows = with_averages(
        [row(name, condition, wer=0.1) for condition in ("offline", "streaming", "snr_5")
         for name in ("x", "y")], {"Mean": ["y"]})
    found = tables(markdown([rows[-1], *rows[:-1]]))
    for title in ("librispeech", "Offline against streaming", "Noise"):
        column = found[title][0].index("Test set")
        assert [cells[column] for cells in found[title][1:]] == ["x", "y", "**Mean**"]


def test_published_figures_without_a_condition_in_common_stay_apart():
    rows = [row("x", paper={"m": 0.1}), row("y"), row("x", "streaming"),
            row("y", "streaming", paper={"m": 0.2})]
    table = tables(markdown(rows))["librispeech"]
    assert [cells[3:] for cells in table] == [
        ["m (paper, offline)", "m (paper, streaming)"], ["10.00", MISSING], [MISSING, "20.00"]]
    same = [row("x", paper={"m": 0.1}), row("x", "streaming", paper={"m": 0.1})]
    assert [cells[3:] for cells in tables(markdown(same))["librispeech"]] == [
        ["m (paper)"], ["10.00"]]


def test_language_identification_by_language_of_scored_utterances():
    def said(language, predicted):
        return Utterance("k", "我 go", "我 go", language, predicted, 1.0)
    metrics = score([said("Chinese", "Chinese"), said("Chinese", "English"),
                     said("Chinese,English", "English"), said(None, None)])
    found = tables(markdown([Row("mixed", "all", "offline", metrics, {})]))
    assert found["LID by language"] == [
        ["Language", "Suite", "Test set", "offline"],
        ["Chinese", "mixed", "all", "50.00"],
        ["Chinese,English", "mixed", "all", "100.00"],
        ["None", "mixed", "all", "100.00"],
    ]
    assert found["mixed"] == [["Test set", "offline", "MER", "LID"],
                              ["all", "0.00", "0.00", "75.00"]]


def test_a_suite_of_noise_alone_has_its_table_too():
    found = tables(markdown([row("x", "snr_5"), row("x", "snr_20")]))
    assert found["librispeech"][0] == ["Test set", "snr_5", "snr_20"]
    assert found["Noise"][0] == ["Suite", "Test set", "20 dB", "5 dB"]


def test_names_cannot_break_a_table():
    found = tables(markdown([row("a|b\nc", "on|off", suite="s|t", paper={"m|n": 0.1})]))
    assert found["s\\|t"] == [["Test set", "on\\|off", "m\\|n (paper)"],
                              ["a\\|b c", "10.00", "10.00"]]


def test_no_rows(tmp_path):
    assert with_averages([], AVERAGES) == []
    write_tables([], tmp_path)
    assert json.loads((tmp_path / "suite.json").read_text()) == []
    assert "|" not in (tmp_path / "suite.md").read_text()
