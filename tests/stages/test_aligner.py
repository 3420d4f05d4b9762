"""The forced aligner from the command line: training, resuming, strategies, what a run leaves."""

import json

import pytest
import torch
from safetensors.torch import load_file

from qwen3asr_train.models import asr, aut

STEPS = ["trainer.max_steps=6", "trainer.validate_every=3", "trainer.checkpoint_every=2",
         "trainer.keep_checkpoints=9", "stage.head.num_labels=400"]
SMALL_STAGE = ["stage.optimizer.warmup_steps=4"]


@pytest.fixture(scope="module")
def run(command_line):
    def started(folder, *more, **options):
        from tests.conftest import SMALL

        shrink = [word for word in SMALL if not word.startswith("stage.")]
        return command_line("stage=aligner", *shrink, *SMALL_STAGE, *STEPS, f"run_dir={folder}",
                            *more, small=False, **options)

    return started


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligner") / "whole"
    run(folder, "stage.evaluation.joined_seconds=[10]", "stage.evaluation.joined_clips=2",
        "stage.evaluation.cross_lingual_seconds=8", "stage.evaluation.snr_db=[10]",
        "stage.teacher.jitter_ms=50", "data.joins.share=0.5", "stage.slots.prefix_share=0.3")
    return folder


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_what_a_run_leaves(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    expected = {f"test/{name}" for name in (
        "aas_ms", "median_ms", "p90_ms", "within_20_ms", "within_50_ms", "within_80_ms",
        "within_160_ms", "aas_floor_ms", "aas_ms/English", "aas_ms/Chinese", "teacher_aas_ms",
        "joined_10s/aas_ms", "cross_lingual/aas_ms", "snr_10/aas_ms")} | {"val/aas_ms", "val/loss"}
    assert expected <= metrics.keys()
    assert 15 < metrics["test/aas_floor_ms"] < 25 < metrics["test/teacher_aas_ms"] < 50
    report = (whole / "report.html").read_text()
    assert 'id="alignment"' in report and report.count("data:image/png") == 4
    config = json.loads((whole / "model" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ASRForTokenClassification"]


def test_resumed_is_bitwise_the_same(run, whole, tmp_path):
    checkpoint = whole / "checkpoints" / "step-2.ckpt"
    run(tmp_path, f"resume={checkpoint}", "stage.test=false", "stage.teacher.jitter_ms=50",
        "data.joins.share=0.5", "stage.slots.prefix_share=0.3")
    found = weights(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in weights(whole).items())


@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 2), ("zero3", 1)])
def test_two_processes_train_as_one(run, tmp_path, strategy, accumulate):
    options = ["stage.test=false", "stage.head.dropout=0", "trainer.max_steps=3"]
    run(tmp_path / "one", *options)
    run(tmp_path / "two", *options, f"strategy={strategy}", "strategy.devices=2",
        f"trainer.accumulate={accumulate}")
    losses = [[json.loads(line)["train/loss"] for line in
               (tmp_path / name / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
              for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_from_a_recogniser_and_on_from_an_aligner(run, finished_run, whole, tmp_path):
    run(tmp_path / "sft", f"init_from={finished_run / 'model'}", "trainer.max_steps=1",
        "stage.test=false", "stage.optimizer.lr=1e-9")
    before, after = weights(finished_run), weights(tmp_path / "sft")
    for name, value in before.items():
        if name.startswith("model.") and value.ndim > 1:
            torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    run(tmp_path / "on", f"init_from={whole / 'model'}", "trainer.max_steps=1",
        "stage.test=false", "stage.optimizer.lr=1e-9")
    torch.testing.assert_close(weights(tmp_path / "on")["score.weight"],
                               weights(whole)["score.weight"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("arguments", "message"), [
    (["data.joins.share=0.5", "data.joins.seconds=[10,60]"], "data.joins.seconds=60: beyond"),
    (["data.augmentation.tempo_share=1", "data.augmentation.tempo_range=[0.5,1]"],
     "data.max_seconds=30, 60 s after data.augmentation: beyond the 400 time classes"),
    (["init_from=./none/such"], "init_from=./none/such: no such folder"),
    (["stage.slots.all_share=2"], "stage.slots.all_share=2"),
    (["stage.decoding.coarse_model=./none"], "stage.decoding.coarse_model=./none: no such folder")])
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    done = run(tmp_path, *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def random_aut(finished_run, tmp_path_factory):
    """An AuT whose CTC knows nothing, and says when each word is said."""
    recogniser, processor = asr.load(str(finished_run / "model"))
    preset = {"audio_config": recogniser.config.audio_config.to_diff_dict(), "aut_decoder": {
        "layers": 1, "d_model": 32, "heads": 2, "ffn_dim": 48, "dropout": 0.0,
        "tie_embeddings": True, "initializer_range": 0.1}}
    folder = tmp_path_factory.mktemp("aut") / "model"
    aut.save(aut.build(preset, processor, 0), processor, folder)
    return folder


def test_evaluation_on_shards_and_on_a_suite(command_line, whole, random_aut, corpus, tmp_path):
    command_line("stage=evaluate", f"init_from={whole / 'model'}", f"data.test={corpus['test']}",
                 f"run_dir={tmp_path / 'a'}", small=False)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    before = json.loads((whole / "metrics.json").read_text())
    assert metrics["test/aas_ms"] == pytest.approx(before["test/aas_ms"])
    mini = "{train_samples:0,validation_samples:0,test_samples:4}"
    done = command_line(
        "stage=evaluate", "suite=alignment", f"init_from={whole / 'model'}",
        f"+suite.sets.embedded.corpus={mini}", f"+suite.sets.mine.data={corpus['test']}",
        "suite.evaluation.joined_seconds=[12]", "suite.evaluation.joined_clips=1",
        "suite.evaluation.cross_lingual_seconds=0", "stage.decoding.max_seconds=6",
        f"stage.decoding.coarse_model={random_aut}", f"stage.evaluation.ctc_model={random_aut}",
        f"run_dir={tmp_path / 'b'}", small=False)
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert {"embedded/aas_ms", "embedded/joined_12s/aas_ms", "mine/snr_10/aas_ms",
            "embedded/joined_12s/ctc_aas_ms"} <= metrics.keys()
    assert metrics["mine/aas_ms"] == pytest.approx(before["test/aas_ms"])
    assert "mine/aas_ms" in done.stdout
    done = command_line("stage=evaluate", "suite=lid", f"init_from={whole / 'model'}", small=False,
                        check=False)
    assert done.returncode == 2 and "is a forced aligner" in done.stderr


def test_transcripts_with_times(command_line, whole, finished_run, corpus, tmp_path):
    from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries

    (tmp_path / "a.wav").write_bytes(
        ShardReader().read(read_entries(find_shards(corpus["test"])[0])[0])[1])
    arguments = ["stage=transcribe", f"init_from={finished_run / 'model'}", "timestamps=true",
                 f"audio={tmp_path / 'a.wav'}", "format=jsonl", "stage.decoding.max_new_tokens=20"]
    row = json.loads(command_line(*arguments, f"aligner={whole / 'model'}", small=False).stdout)
    assert isinstance(row["words"], list)
    assert all(0 <= word["start"] <= word["end"] for word in row["words"])
    done = command_line(*arguments, small=False, check=False)
    assert done.returncode == 2 and "aligner=RUN/model" in done.stderr
