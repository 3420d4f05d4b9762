"""Suites from the command line, and the figures that they make of rows."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qwen3asr_train.command_line import CONFIGS
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.tables import Row
from qwen3asr_train.options import headline_of
from qwen3asr_train.stages.conditions import find_sets
from qwen3asr_train.stages.suites import cost_growth, figures, published

SUITE = ["+suite.name=mini", "+suite.conditions=[offline]",
         "+suite.sets.speech.corpus={test_samples: 4, train_samples: 0, validation_samples: 0}",
         "+suite.sets.speech.conditions=[offline, streaming, snr_10, forced_language]",
         "+suite.sets.names.corpus={test_samples: 4, train_samples: 0, validation_samples: 0, "
         "entity_share: 1.0}",
         "+suite.sets.names.conditions=[offline, with_entities, distractors, injection]",
         "+suite.sets.sounds.corpus={test_samples: 4, train_samples: 0, validation_samples: 0, "
         "sound_share: 1.0}", "+suite.sets.mine.data=nowhere",
         "+suite.averages={both: [speech, names]}",
         "+suite.headline={offline/wer: speech/offline/wer, "
         "ratio: speech/streaming/wer / speech/offline/wer}",
         "stage.decoding.max_new_tokens=6", "stage.decoding.max_piece_seconds=1.5",
         "stage.decoding.min_piece_seconds=0.5"]


@pytest.fixture(scope="module")
def model(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sft"
    command_line("stage=sft", f"run_dir={folder}", "trainer.max_steps=2", "stage.test=false",
                 "trainer.validate_every=0")
    return folder / "model"


def test_a_suite_of_the_embedded_corpus(command_line, model, tmp_path):
    done = command_line("stage=evaluate", f"init_from={model}", f"run_dir={tmp_path}", *SUITE,
                        small=False)
    assert "mine is left out" in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["offline/wer"] == metrics["speech/offline/wer"]
    assert metrics["ratio"] == pytest.approx(
        metrics["speech/streaming/wer"] / metrics["speech/offline/wer"])
    assert "speech/forced_language/lid_accuracy" not in metrics  # it was told
    assert not any(name.startswith("test/") for name in metrics)
    assert "ratio" in done.stdout.splitlines()[-1]
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 4 * (4 + 4 + 1)
    forced = [row for row in results if row["condition"] == "forced_language"]
    assert all(row["predicted_language"] == row["language"] for row in forced)
    assert {"names/with_entities/entity_recall", "names/distractors/false_alarm",
            "names/injection/obeyed", "sounds/offline/none_rate", "both/offline/wer"} \
        <= metrics.keys()
    rows = json.loads((tmp_path / "suite.json").read_text())
    assert {(row["test_set"], row["condition"]) for row in rows} >= {
        ("speech", "streaming"), ("names", "injection"), ("both", "offline")}
    assert "streaming" in (tmp_path / "suite.md").read_text()
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("arguments", "message"), [
    (["suite=librispeech"], "none of its shards is there"),
    (["suite=nothing"], "nothing"),
])
def test_a_suite_that_cannot_be_scored(command_line, model, arguments, message):
    done = command_line("stage=evaluate", f"init_from={model}", *arguments, small=False,
                        check=False)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["suite=embedded", "suite.conditions=[loud]"], "no condition 'loud'"),
    (["suite=mine"], "data.test="),
    (["suite=embedded", "+suite.averages={all: [nowhere]}"], "the average 'all'"),
    (["suite=embedded", "+suite.sets.sounds.conditions=[injection]"], "needs the condition off"),
    (["suite=mine", "data.test=TEST", "suite.conditions=[typo]",
      "+stage.conditions.typo={contexts: {entitys: 1}}"], "entitys"),
    (["suite=mine", "data.test=TEST", "suite.conditions=[distractors]"], "`entities`"),
    (["suite=embedded", "+suite.headline.x='a/b /c'"], "headline x"),
])
def test_mistakes_are_found_before_anything_is_scored(corpus, arguments, message):
    arguments = [argument.replace("TEST", corpus["test"]) for argument in arguments]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", ["stage=evaluate", "stage.init_from=x", "run_dir=x", *arguments])
    with pytest.raises(UserError, match=message):
        find_sets(OmegaConf.to_container(config.suite, resolve=True), config)


def test_headline_figures():
    rows = [Row("s", "a", "offline", {"wer": 0.2}, {}), Row("s", "a", "snr_0", {"wer": 0.5}, {})]
    headline = {"wer": "a/offline/wer", "loss": "a/snr_0/wer - a/offline/wer",
                "times": "a/snr_0/wer / a/offline/wer", "left out": "b/offline/wer",
                False: "a/offline/wer"}
    found = figures(rows, headline_of({"headline": headline}))
    assert found["a/snr_0/wer"] == 0.5 and found["wer"] == 0.2 and "left out" not in found
    assert found["loss"] == pytest.approx(0.3) and found["times"] == pytest.approx(2.5)
    assert found["False"] == 0.2  # what YAML makes of `no`


def test_published_figures_are_those_of_the_condition():
    paper = {"A": 0.1, "A streaming": 0.2, "B": 0.3}
    assert published(paper, "offline") == {"A": 0.1, "B": 0.3}
    assert published(paper, "streaming") == {"A": 0.2} and published(paper, "snr_10") == {}


def test_cost_growth_compares_late_chunks_with_early_ones():
    flat = list(1.0 + 0.1 * np.sin(np.arange(150) * 2 * np.pi / 15))
    assert cost_growth([flat])["cost_growth"] == pytest.approx(1.0, abs=0.1)
    growing = list(1.0 + np.arange(150) / 10)
    assert cost_growth([growing])["cost_growth"] == pytest.approx(15.2 / 1.9, rel=0.01)
    assert cost_growth([[1.0] * 20]) == {}


def test_suite_files_use_conditions_that_exist():
    known = set(OmegaConf.load(CONFIGS / "stage" / "evaluate.yaml").conditions)
    for file in (CONFIGS / "suite").glob("*.yaml"):
        suite = OmegaConf.load(file)
        if suite.get("aligner"):  # it has ways of hearing clips, not conditions
            continue
        for name, options in suite.sets.items():
            assert set(options.get("conditions") or suite.conditions) <= known, (file, name)
