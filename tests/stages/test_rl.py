"""Reinforcement learning from the command line: resuming in a rollout, strategies, rewards."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from qwen3asr_train.errors import UserError
from qwen3asr_train.objectives.gspo import Objective
from qwen3asr_train.objectives.rewards import REWARDS
from qwen3asr_train.stages.rl import refuse_mistakes

SUPERVISED = "stage.objective.cross_entropy=0.3"
STEPS = ["trainer.max_steps=7", "trainer.validate_every=0", "trainer.checkpoint_every=1",
         "trainer.keep_checkpoints=9", "stage.test=false", "stage.updates_per_rollout=3",
         "stage.sampling.group=4", "stage.optimizer.lr=1e-3", "stage.sampling.max_new_tokens=24"]


def small_rl(*more: str) -> list[str]:
    return ["stage=rl", *STEPS, *more]


@pytest.fixture(scope="module")
def run(command_line, finished_run):
    """``stage=rl`` from the finished SFT run."""
    def started(folder, *more, **options):
        return command_line(*small_rl(f"init_from={finished_run / 'model'}", f"run_dir={folder}",
                                      *more), **options)

    return started


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl") / "whole"
    run(folder, "stage.test=true", "trainer.validate_every=4")
    return folder


def rows(folder, column="train/loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[column] for line in lines if column in line}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_what_a_run_leaves(uninterrupted, finished_run):
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert {"test/wer", "val/wer", "rollout/reward", "rollout/reward/error_rate",
            "rollout/flat_share", "rollout/empty", "train/clip_share", "train/entropy",
            "train/log_prob_gap"} <= metrics.keys()
    # the first step of a rollout trains on the policy that answered
    gaps = rows(uninterrupted, "train/log_prob_gap")
    assert sorted(gaps) == [1, 2, 3, 4, 5, 6, 7]
    assert all(gaps[step] < 1e-5 for step in (1, 4, 7)) and gaps[3] > 1e-4 < gaps[6]
    assert sorted(rows(uninterrupted, "rollout/reward")) == [1, 4, 7]
    before, after = weights(finished_run), weights(uninterrupted)
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    answers = [json.loads(line) for line in
               (uninterrupted / "rollouts.jsonl").read_text().splitlines()]
    assert all(len(row["answers"]) == len(row["rewards"]) == 4 for row in answers)
    assert "Answers and rewards" in (uninterrupted / "report.html").read_text()


def test_resumed_within_a_rollout_is_bitwise_the_same(run, uninterrupted, tmp_path):
    step, between = 2, uninterrupted / "checkpoints" / "step-3.ckpt"
    checkpoint = uninterrupted / "checkpoints" / f"step-{step}.ckpt"
    assert torch.load(checkpoint, weights_only=True)["rollout_underway"]["groups"]
    assert not torch.load(between, weights_only=True)["rollout_underway"]["groups"]
    run(tmp_path, f"resume={checkpoint}")
    expected, found = weights(uninterrupted), weights(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    losses = rows(uninterrupted)
    assert rows(tmp_path) == {k: v for k, v in losses.items() if k > step}


def with_mine(folder, source: str) -> dict[str, str]:
    """The environment in which ``mine`` is a module of ``source``."""
    (folder / "mine.py").write_text(source)
    return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}:{os.getcwd()}"}


HALF_FLAT = """
def half_flat(completions, text, **columns):
    return [len(answer) * (len(said) % 2) for answer, said in zip(completions, text)]
"""


def test_resumed_with_spares_in_several_micro_batches(run, tmp_path):
    """A spare is in reach of each micro-batch of a step, and goes to the one that had it."""
    path, whole, more = with_mine(tmp_path, HALF_FLAT), tmp_path / "whole", (
        "trainer.accumulate=2", "trainer.max_steps=3", "stage.own_rewards=[mine:half_flat]",
        *(f"stage.rewards.{name}=0" for name in REWARDS))
    run(whole, *more, **path)
    assert rows(whole, "rollout/replaced_share")[1] > 0.1 < rows(whole, "rollout/flat_share")[1]
    run(tmp_path / "on", *more, f"resume={whole}/checkpoints/step-1.ckpt", **path)
    found = weights(tmp_path / "on")
    assert all(torch.equal(found[name], value) for name, value in weights(whole).items())
    assert rows(tmp_path / "on", "rollout/reward") == {}  # nothing was answered
    assert not (tmp_path / "on" / "rollouts.jsonl").exists()


def test_the_ratio_begins_at_1_in_bfloat16(run, tmp_path):
    run(tmp_path, "trainer.precision=bf16-mixed", "trainer.max_steps=3")
    gaps, deviations, clipped = (rows(tmp_path, f"train/{name}") for name in (
        "log_prob_gap", "ratio_deviation", "clip_share"))
    assert gaps[1] > 1e-4  # what the sampler says is off by more than the clipping allows
    assert deviations[1] == clipped[1] == 0 < deviations[2]


def test_a_run_folder_that_is_begun_anew_keeps_nothing_of_the_old_run(run, tmp_path):
    done = run(tmp_path, "trainer.progress=true", "trainer.log_every=5")
    assert "step 5/7  loss" in done.stderr and "reward -" in done.stderr
    refused = run(tmp_path, "trainer.max_steps=3", check=False)
    assert refused.returncode == 2 and "holds step-7.ckpt of an earlier run" in refused.stderr
    shutil.rmtree(tmp_path / "checkpoints")
    run(tmp_path, "trainer.max_steps=3")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rollout/reward" in line] == [1]
    answers = [json.loads(line) for line in
               (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in answers}) == len(answers) and answers[0]["step"] == 1


def test_killed_at_any_time(run, uninterrupted, tmp_path):
    process = run(tmp_path, popen=True)
    deadline = time.time() + 120
    while not list((tmp_path / "checkpoints").glob("step-2.ckpt")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run(tmp_path, "resume=auto")
    found = weights(tmp_path)
    assert all(torch.equal(found[n], value) for n, value in weights(uninterrupted).items())


@pytest.fixture(scope="module")
def without_spares(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl") / "single"
    run(folder, "stage.spares=0", SUPERVISED)
    return folder


def test_ranks_whose_answers_are_cut_at_other_lengths_go_on_together(run, tmp_path):
    run(tmp_path, "stage.spares=0", "strategy=zero3", "strategy.devices=2", "trainer.max_steps=2",
        "stage.guard.allowance=1", "stage.guard.max_tokens_per_second=2")
    assert len(rows(tmp_path)) == 2 and rows(tmp_path, "rollout/unfinished")[1] > 0


@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 2), ("zero2", 1),
                                                      ("zero3", 2)])
def test_two_processes_train_as_one(run, without_spares, tmp_path, strategy, accumulate):
    run(tmp_path, "stage.spares=0", SUPERVISED, f"strategy={strategy}", "strategy.devices=2",
        f"trainer.accumulate={accumulate}")
    rewards, expected = (rows(f, "rollout/reward") for f in (tmp_path, without_spares))
    assert rewards[1] == pytest.approx(expected[1], rel=1e-6)  # the same answers
    for step, loss in list(rows(without_spares).items())[:3]:
        assert rows(tmp_path)[step] == pytest.approx(loss, rel=1e-3, abs=1e-6)
    supervised = rows(without_spares, "train/cross_entropy")
    for step, value in rows(tmp_path, "train/cross_entropy").items():
        assert value == pytest.approx(supervised[step], rel=1e-3 if step < 4 else 0.1)
    final = weights(tmp_path)
    for name, value in weights(without_spares).items():
        torch.testing.assert_close(final[name], value, rtol=0.1, atol=2e-2)


def test_frozen_encoder_stays_and_trains_on_kept_features(run, finished_run, tmp_path):
    run(tmp_path, "model.freeze=['model.audio_tower.*','model.multi_modal_projector.*']",
        "strategy=ddp", "strategy.devices=2", SUPERVISED)
    before, after = weights(finished_run), weights(tmp_path)
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed and not any("audio_tower" in name or "projector" in name for name in changed)


@pytest.mark.parametrize("options", [
    ["stage.objective.level=token", "stage.objective.clip_low=0.2", "stage.objective.scale=none",
     "stage.objective.clip_high=0.2", "stage.objective.average=length"],
    ["stage.objective.kl=0.1", "stage.objective.level=sequence_token",
     "stage.objective.cross_entropy=0.5"]], ids=["dr-grpo", "kl"])
def test_relatives(run, tmp_path, options):
    run(tmp_path, *options)
    assert len(rows(tmp_path)) == 7
    supervised = rows(tmp_path, "train/cross_entropy")
    assert len(supervised) == 7 * ("stage.objective.cross_entropy=0.5" in options)
    assert all(value > 0 for value in supervised.values())
    if "kl" in options[0]:
        divergence = rows(tmp_path, "train/kl")
        assert abs(divergence[1]) < 1e-6 < divergence[7]


REWARD = '''
import math
calls = 0

def good(prompts, completions, completion_ids, **columns):
    assert len(columns["text"]) == len(prompts) == len(completions) == len(completion_ids)
    return [float(len(text)) for text in completions]

def sometimes(completions, **columns):
    return [math.nan if i < 4 else float(i) for i in range(len(completions))]

def breaks(completions, **columns):
    raise RuntimeError("out of words")
'''


def test_a_users_rewards(run, tmp_path):
    path = with_mine(tmp_path, REWARD)
    done = run(tmp_path / "b", "stage.own_rewards=[mine:breaks]", check=False, **path)
    assert done.returncode == 2 and done.stderr.count("\n") <= 12
    assert "mine:breaks raised RuntimeError: out of words" in done.stderr
    done = run(tmp_path / "c", "stage.own_rewards=[mine:sometimes,mine:good]",
               "stage.bad_rewards=drop", "trainer.max_steps=3", **path)
    assert "returned nan for 4 of" in done.stdout + done.stderr
    assert rows(tmp_path / "c", "rollout/dropped_share")[1] > 0
    assert rows(tmp_path / "c", "rollout/reward/mine:good")[1] > 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["stage.own_rewards=[wer]"], "'wer' is no module:function"),
    (["stage.decoding.min_piece_seconds=40"], "min_piece_seconds=40"),
    (["init_from=null"], "init_from=RUN/model")])
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    done = run(tmp_path, *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["stage.objective.level=word"], "level='word'"),
    (["stage.objective.cross_entropy=-1"], "cross_entropy=-1"),
    (["stage.bad_rewards=skip"], "stop or drop, not skip"),
    (["stage.sampling.group=1"], "at least 2"),
    (["stage.sampling.temperature=0"], "stage.sampling.temperature=0: above 0"),
    (["stage.sampling.max_new_tokens=0"], "max_new_tokens=0: at least 1"),
    (["stage.updates_per_rollout=0"], "updates_per_rollout=0: at least 1"),
    (["stage.spares=-1"], "spares=-1: at least 0"),
    (["stage.objective.clip_low=-1"], "clip_low=-1"),
    (["stage.old_log_probs=new"], "old_log_probs=new: auto or sampled or recomputed"),
    (["model.lora.rank=4", "model.lora.dropout=0.1"], "model.lora.dropout=0"),
    (["model.attn_implementation=eager"], "model.attn_implementation=sdpa"),
    (["stage.server.url=http://x", "model.lora.rank=4"], "model.lora"),
    (["stage.server.url=http://x", "data.augmentation.time_masks=1"], "augmentation.time_masks")])
def test_what_cannot_be_trained_is_refused(composed, arguments, message):
    with pytest.raises(UserError, match=message):
        config = composed("stage=rl", *arguments)
        refuse_mistakes(config)
        Objective(**config.stage.objective)
