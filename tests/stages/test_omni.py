"""The omni stage from the command line: phases, what is frozen, resuming, what SFT takes."""

import json
import os
import signal
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from data_prep import pictures
from qwen3asr_train.data.shards import ShardWriter
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr, omni
from qwen3asr_train.models.tokenizer import train_tokenizer
from qwen3asr_train.stages.omni_setup import (
    Pass,
    build_model,
    build_reader,
    build_tasks,
    passes_of,
)
from qwen3asr_train.stages.omni_training import (
    OmniModule,
    learning_rates,
    optimizer_name,
    pass_config,
    wrong_token_share,
)

PASSES = {"prepare": ["language"], "general": ["all"], "long": ["all"], "align": [
    "audio_adapter", "audio_encoder", "vision_adapter", "vision_encoder"]}
MODEL = ["model.tokenizer=300", "model.audio_config.d_model=32",
         "model.audio_config.encoder_layers=1", "model.audio_config.encoder_ffn_dim=48",
         "model.audio_config.downsample_hidden_size=4", "model.text_config.hidden_size=32",
         "model.text_config.intermediate_size=48", "model.text_config.num_hidden_layers=2",
         "model.text_config.head_dim=12", "model.vision_config.depth=2",
         "model.vision_config.hidden_size=16", "model.vision_config.intermediate_size=24"]
SMALL = [*MODEL, "stage=omni", "data.corpus.train_samples=40", "data.corpus.test_samples=4",
         "data.corpus.picture_factor=1",
         "data.workers=0", "trainer.max_steps=3", "trainer.log_every=1", "trainer.progress=false",
         "stage.evaluation.max_new_tokens=4",
         *(f"stage.phases.{phase}.passes.{name}.warmup_steps=1" for phase, names in PASSES.items()
           for name in names)]


@pytest.fixture(scope="module")
def run(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "omni"
    done = command_line(*SMALL, f"run_dir={folder}", small=False)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    return folder


def states(folder) -> dict[str, dict[str, torch.Tensor]]:
    """The weights after each pass, in the order of training."""
    return {f"{phase}/{name}": torch.load(
        folder / "phases" / phase / name / "checkpoints" / "step-3.ckpt",
        weights_only=True)["state_dict"] for phase in ("prepare", "align", "general", "long")
        for name in PASSES[phase]}


def test_frozen_parts_do_not_move_by_a_bit(run):
    after = states(run)
    trained = {"align/audio_adapter": "audio_adapter", "align/audio_encoder": "audio_encoder",
               "align/vision_adapter": "vision_adapter", "align/vision_encoder": "vision_encoder"}
    names = list(after)
    for before, now in pairwise(names):
        moved = {omni.part_of(name.removeprefix("model.")) for name, value in after[now].items()
                 if not torch.equal(value, after[before][name])}
        assert moved == ({trained[now]} if now in trained else set(omni.PARTS)), now


def test_every_figure_before_and_after_each_phase(run):
    metrics = json.loads((run / "metrics.json").read_text())
    figures = ["captions/exact_match", "spoken_questions/exact_match", "sounds/exact_match",
               "questions/exact_match", "words/exact_match", "speech/wer", "long_speech/wer",
               "text/perplexity", "films/film_caption/exact_match",
               "films/film_question/exact_match",
               "sounding_films/film_with_sound/exact_match",
               "sounding_films/film_with_sound_question/exact_match"]
    phases = ["prepare", "align", "general", "long"]
    for figure in figures:
        for first, second in pairwise(phases):
            assert metrics[f"{first}/after/{figure}"] == metrics[f"{second}/before/{figure}"]
        assert metrics[f"test/{figure}"] == metrics[f"long/after/{figure}"]
    assert metrics["prepare/before/text/perplexity"] > metrics["long/after/text/perplexity"]
    assert metrics["general/all/packing_waste"] < 0.03
    assert metrics["long/all/train/steps"] == 3
    output = (run / "output.txt").read_text()
    assert "general/all: padding" in output and "spoken_questions/exact_match" in output
    assert "<svg" in (run / "phases.svg").read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 3 * 7 + 1))
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    for source in ("captions", "questions", "words", "sounds", "spoken_questions"):
        found = [answer for answer in answers if answer["source"] == source]
        right = [answer["answer"].lower().split() == answer["reference"].lower().split()
                 for answer in found]
        assert len(found) == 4 and metrics[f"test/{source}/exact_match"] == sum(right) / 4


def test_sft_leaves_the_vision_tower_behind(run, command_line, tmp_path):
    command_line("stage=sft", f"init_from={run / 'model'}", f"run_dir={tmp_path}",
                 "trainer.max_steps=2", "trainer.validate_every=0", "stage.test=false")
    assert not omni.is_omni(str(tmp_path / "model"))
    found = load_file(tmp_path / "model" / "model.safetensors")
    given = load_file(run / "model" / "model.safetensors")
    assert {n for n in given if not n.startswith("model.visual.")} == set(found)
    model, _ = asr.load(str(run / "model"))
    assert all(torch.equal(model.state_dict()[n], v) for n, v in given.items() if n in found)


def test_killed_and_resumed_is_bitwise_the_same(run, command_line, tmp_path):
    arguments = [*SMALL, f"run_dir={tmp_path}", "trainer.checkpoint_every=1"]
    process = command_line(*arguments, small=False, popen=True)
    deadline = time.time() + 200
    while not list((tmp_path / "phases/align/audio_encoder/checkpoints").glob("step-*.ckpt")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = command_line(*arguments, "resume=auto", small=False)
    assert "align/audio_adapter: done before" in done.stderr
    expected = load_file(run / "model" / "model.safetensors")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    figures = json.loads((run / "metrics.json").read_text())
    again = json.loads((tmp_path / "metrics.json").read_text())
    for name, value in figures.items():
        if "/before/" in name or "/after/" in name:
            assert again[name] == value, name


def losses(folder) -> list[float]:
    return [json.loads(line)["train/loss"] for line in
            (folder / "metrics.jsonl").read_text().splitlines()]


SHORT = [*(a for a in SMALL if "phases.long.passes." not in a), "stage.test=false",
         "stage.optimizer.name=adamw",  # zero2 has no Muon
         "stage.phases.long.passes=null", "stage.phases.align.passes.audio_encoder.steps=0",
         "stage.phases.align.passes.vision_adapter.steps=0"]


@pytest.fixture(scope="module")
def one_process(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    command_line(*SHORT, f"run_dir={folder}", small=False)
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_processes_train_as_one(command_line, one_process, tmp_path, strategy):
    """Also in later passes, whose Trainer finds the processes of the first, and frozen parts."""
    command_line(*SHORT, f"run_dir={tmp_path}", f"strategy={strategy}", "strategy.devices=2",
                 small=False)
    assert len(losses(one_process)) == 12
    assert losses(tmp_path) == pytest.approx(losses(one_process), rel=1e-4)
    before, now = (torch.load(tmp_path / "phases" / one / "checkpoints/step-3.ckpt",
                              weights_only=True)["state_dict"]
                   for one in ("align/audio_adapter", "align/vision_encoder"))
    assert {omni.part_of(name.removeprefix("model.")) for name, value in now.items()
            if not torch.equal(value, before[name])} == {"vision_encoder"}
    assert omni.is_omni(str(tmp_path / "model"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["strategy=zero3", "strategy.devices=2"], "strategy=single, ddp, zero1 or zero2; zero3"),
    (["resume=/some/file"], "stage=omni goes on with resume=auto"),
    (["data=omni_shards"], "data.sources is not set")])
def test_what_is_refused(command_line, tmp_path, arguments, message):
    done = command_line("stage=omni", f"run_dir={tmp_path}", *arguments, small=False, check=False)
    assert done.returncode == 2 and message in done.stderr


@pytest.fixture()
def config(composed):
    return lambda *overrides: composed("stage=omni", *overrides)


def test_muon_wherever_matrices_are_whole(config):
    for strategy, expected in (("single", "muon"), ("ddp", "muon"), ("zero1", "adamw"),
                               ("zero2", "adamw")):
        assert optimizer_name(config(f"strategy={strategy}")) == expected
    assert optimizer_name(config("stage.optimizer.name=adamw")) == "adamw"


def test_a_recognisers_new_tower_learns_from_nothing(config, run):
    rates = learning_rates(config("stage.init_from=a/recogniser"))
    assert rates == pytest.approx({"audio_adapter": 2e-4, "audio_encoder": 2e-4,
                                   "vision_adapter": 2e-3, "vision_encoder": 2e-3,
                                   "language_model": 2e-4})
    assert set(learning_rates(config(f"stage.init_from={run / 'model'}")).values()) == {2e-4}


def test_wrong_tokens_where_the_language_model_learns_from_nothing(config):
    assert wrong_token_share(config()) == 0.15
    assert wrong_token_share(config("stage.init_from_encoder=x")) == 0.15
    assert wrong_token_share(config("stage.init_from=x")) == 0.0
    assert wrong_token_share(config("stage.language_model_from=x")) == 0.0
    assert wrong_token_share(config("stage.init_from=x", "stage.wrong_token_share=0.3")) == 0.3


def test_a_learning_rate_for_each_part(run, config):
    model, _ = omni.load(str(run / "model"))
    options = config(*(f"stage.optimizer.{field}" for field in (
        "lr.vision_encoder=1e-4", "lr.language_model=3e-5", "muon_lr_scale=3",
        "weight_decay=0.02")))
    one = Pass("general", "all", options.stage.phases.general.passes.all)
    module = OmniModule(model, pass_config(options, one), one)
    module._trainer = SimpleNamespace(max_steps=10)
    optimizer = module.configure_optimizers()["optimizer"]
    by_part = {}
    names = {id(p): n.removeprefix("model.") for n, p in module.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            rate = group["initial_lr"] / (3 if group.get("muon") else 1)
            by_part.setdefault(omni.part_of(names[id(p)]), set()).add(round(rate, 9))
            assert group["weight_decay"] == (0.02 if p.ndim > 1 else 0.0)
    assert any(group.get("muon") for group in optimizer.param_groups)
    assert by_part == {"audio_adapter": {2e-3}, "audio_encoder": {2e-3}, "vision_adapter": {2e-3},
                       "vision_encoder": {1e-4}, "language_model": {3e-5}}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folders as the released ones: a Qwen3, a Qwen3-VL as wide, and one that is wider."""
    root = tmp_path_factory.mktemp("released")
    tokenizer = train_tokenizer(["a red circle"] * 4, 280)
    text = dict(vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, head_dim=12,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**text, tie_word_embeddings=True)).save_pretrained(root / "text")
    tokenizer.save_pretrained(root / "text")
    vision = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4,
                  num_position_embeddings=16, deepstack_visual_indexes=[0])
    for name, width in (("vision", 24), ("wide", 32)):
        Qwen3VLForConditionalGeneration(Qwen3VLConfig(
            text_config=text | {"hidden_size": width},
            vision_config=vision | {"out_hidden_size": width})).save_pretrained(root / name)
    return root


def test_parts_of_released_checkpoints(config, released):
    given = [*MODEL, f"stage.language_model_from={released / 'text'}",
             f"stage.vision_from={released / 'vision'}", "stage.optimizer.lr.vision_adapter=5e-4"]
    options = config(*given)
    model, processor = build_model(options, {}, build_tasks(options))
    saved = load_file(released / "text" / "model.safetensors") | {
        name: value for name, value in load_file(released / "vision" / "model.safetensors").items()
        if name.startswith("model.visual.")}
    for name, value in saved.items():
        ours = name if "visual" in name else name.replace("model.", "model.language_model.", 1)
        assert torch.equal(model.state_dict()[ours][:len(value)], value), name
    assert processor.tokenizer.convert_tokens_to_ids("<|video_pad|>") < len(model.lm_head.weight)
    reader = build_reader(options, model, processor, build_tasks(options))
    assert reader.picture.patch == 4  # not the preset's
    assert list(passes_of(options)) == ["align", "general", "long"]
    assert learning_rates(options) == pytest.approx({
        "audio_adapter": 2e-3, "audio_encoder": 2e-3, "vision_adapter": 5e-4,
        "vision_encoder": 2e-4, "language_model": 2e-4})
    for more, message in (
            ([f"stage.vision_from={released / 'wide'}"], "32 wide, the language model is 24 wide"),
            (["stage.init_from=x/y"], "init_from=x/y brings its own language model")):
        with pytest.raises(UserError, match=message):
            build_model(config(*given, *more), {}, {})


def test_the_joint_variant_trains_both_at_once(config):
    passes = config("experiment=omni_joint").stage.phases.align.passes
    assert {name: list(one.train) for name, one in passes.items()} == {
        "audio": ["audio_adapter", "audio_encoder"], "vision": ["vision_adapter", "vision_encoder"]}


@pytest.mark.parametrize(("override", "message"), [
    ("+stage.phases.general.passes.all.stepz=3", r"passes\.all: fields \['stepz'\]"),
    ("stage.phases.general.passes.all.train=[ears]", r"passes\.all\.train: \['ears'\]"),
    ("+stage.tasks.asr.prompt=x", "prompt"),
    ("stage.tasks.asr.needs=[smell]", "needs")])
def test_mistakes_in_phases_and_tasks(config, override, message):
    with pytest.raises(UserError, match=message):
        passes_of(config(override))
        build_tasks(config(override))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Own shards: captions, one of them without its picture."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for number in range(12):
            scene = pictures.single(rng)
            writer.write(f"good{number}", {"text": scene.caption, "task": "image_caption"},
                         image=pictures.draw(scene, rng))
        writer.write("bare", {"text": "a red circle", "task": "image_caption"})
    return folder


OWN = [*MODEL, "stage=omni", "data=omni_shards", "data.workers=0", "trainer.progress=false",
       "stage.test=false", "stage.phases.prepare.passes.language.steps=0",
       "stage.phases.align.passes=null", "stage.phases.long.passes=null",
       "stage.phases.general.passes.all.steps=2", "stage.phases.general.passes.all.step_tokens=400"]


def test_bad_samples_of_ones_own_shards(broken, command_line, tmp_path):
    given = [*OWN, f"run_dir={tmp_path}", f"data.sources={{pictures: {{train: {broken}}}}}"]
    weights = ("text", "speech", "sounds", "captions", "questions", "words", "spoken_questions",
               "films", "sounding_films")
    none = [f"stage.phases.general.passes.all.weights.{name}=0" for name in weights]
    refused = command_line(*given, small=False, check=False)
    assert refused.returncode == 2 and "no source captions in data.sources" in refused.stderr
    mistyped = command_line(*OWN, f"run_dir={tmp_path}", "data.sources={pictures: x}", small=False,
                            check=False)
    assert "data.sources.pictures=x: say {train: SHARDS}" in mistyped.stderr
    given += [*none, "+stage.phases.general.passes.all.weights.pictures=1"]
    refused = command_line(*given, small=False, check=False)
    assert refused.returncode == 2
    assert "bare: task 'image_caption' without its image" in refused.stderr
    done = command_line(*given, "data.max_bad_samples=1", small=False)
    assert "1 of 13 samples cannot be used" in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["general/all/train/unusable_samples"] == 1
