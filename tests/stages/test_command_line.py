"""What a user meets at the command line: messages, transcription, evaluation, options."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import load_file

from qwen3asr_train import __main__, command_line, config_checks
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr
from qwen3asr_train.stages.setup import add_lora


def last_error(done) -> str:
    """The only line on stderr of a command that was refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "name a stage: python -m qwen3asr_train stage=sft"),
    (["stage=fine-tune"], r"no stage 'fine-tune' (stages: align, aligner, aut, evaluate, export, "
                          "omni, rl, sft, transcribe)"),
    (["stage=sft", "learning_rate=1"], "no config field 'learning_rate'"),
    (["stage=omni", "init_from=a", "init_from_encoder=b"], "init_from=a brings its own encoder"),
    (["stage=aligner", "model.lora.rank=4"], "stage=aligner trains whole matrices"),
    (["stage=sft", "model.lora.rank=4", "strategy=zero3"], "take strategy=zero2"),
    (["stage=sft", "--multirun", "seed=0,1", "strategy=ddp"], "--multirun is for strategy=single"),
    (["stage=sft", "+trainer.max_step=1"], "unknown config key 'trainer.max_step'"),
    (["stage=aut", "data.train={a: x, b: x}"], "no shards at 'x'"),
    (["stage=sft", "model=huge"], "Could not find 'model/huge' Available options"),
    (["stage=evaluate", "data.test=x"], "stage.init_from is not set"),
    (["stage=sft", "data.train=/nowhere"], "no shards at '/nowhere'"),
    (["stage=sft", "data=shards"], "data.train is not set"),
    (["stage=sft", "strategy.devices=2"], "strategy=single runs one process"),
    (["stage=sft", "data.corpus.languages=[Klingon]"], "data.corpus.languages=['Klingon']"),
    (["stage=sft", "model.freeze=[nothing.*]"], "'nothing.*' matches no parameter"),
    (["stage=sft", "resume=/nowhere"], "resume=/nowhere: no checkpoint there"),
    (["stage=transcribe", "init_from=x", "audio=/nowhere.wav"], "no such file or folder"),
    (["stage=transcribe", "init_from=a=b", "audio=[a] b.wav"], "audio=[a] b.wav: no such file"),
    (["stage=sft", "trainer.max_steps=abc"], "trainer.max_steps=abc: a number is wanted"),
    (["stage=sft", "stage.optimizer.schedule=cosin"], "one of cosine, wsd, constant"),
])
def test_a_mistake_is_one_line_that_says_what_to_do(command_line, arguments, message):
    small = arguments[:1] == ["stage=sft"] and "data=shards" not in arguments
    assert message in last_error(command_line(*arguments, small=small, check=False))


@pytest.mark.parametrize(("override", "message"), [
    ("data.max_seconds=abc", "a number is wanted"), ("stage.test=5", "true or false is wanted"),
    ("stage.contexts.list_length=5", "a list is wanted"), ("model.tokenizer=a/b", None),
    ("trainer.log_every=null", None), ("seed=${trainer.log_every}", None)])
def test_types_are_those_of_the_defaults(composed, override, message):
    defined = config_checks.fields(composed("stage=sft"))
    config = composed("stage=sft", override)
    if message is None:
        return config_checks.refuse_wrong_types(config, defined)
    with pytest.raises(UserError, match=rf"^{override}: {message}"):
        config_checks.refuse_wrong_types(config, defined)


@pytest.mark.parametrize("override", [
    "trainer.max_steps=0", "trainer.max_steps=null", "trainer.max_steps=2.5", "seed=null",
    "trainer.accumulate=0", "trainer.accumulate=-1", "data.batch_seconds=0", "data.workers=-1",
    "data.batch_seconds=null", "data.max_seconds=null", "data.batch_seconds=-5",
    "stage.optimizer.lr=null", "stage.optimizer.lr=-1", "stage.optimizer.lr=abc",
    "stage.optimizer.warmup_steps=-1", "model.lora.rank=-1", "stage.decoding.max_new_tokens=0",
    "stage.decoding.max_piece_seconds=null", "stage.decoding.pause_seconds=null"])
def test_numbers_that_cannot_be_are_refused(composed, override):
    defined = config_checks.fields(composed("stage=sft"))
    config_checks.refuse_out_of_range(composed("stage=sft"), defined)
    with pytest.raises(UserError, match=rf"^{override}: a (whole )?number"):
        config_checks.refuse_out_of_range(composed("stage=sft", override), defined)


def test_what_a_resumed_run_has_other_than_before_is_told(composed):
    before = composed("stage=sft", "run_dir=a", "data.train=x")
    after = composed("stage=sft", "run_dir=b", "data.train=y", "resume=auto", "strategy=ddp",
                     "stage.optimizer.lr=1", "seed=null")
    assert config_checks.differences(before, after) == [
        "data.train=y (was x)", "seed=null (was 0)", "stage.optimizer.lr=1 (was auto)"]
    assert config_checks.differences(after, after) == []


def test_help_lists_the_stages_and_fields(command_line):
    text = command_line("--help", small=False).stdout
    assert "stage=transcribe" in text and "max_steps" in text and "zero3" in text


def test_an_unknown_key_in_an_experiment_file_is_refused(tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    shutil.copytree(command_line.CONFIGS, configs)
    (configs / "experiment").mkdir(exist_ok=True)
    (configs / "experiment" / "typo.yaml").write_text(
        "# @package _global_\ntrainer:\n  max_stepz: 3\n")
    script = tmp_path / "main.py"
    script.write_text("import pathlib\nfrom qwen3asr_train import command_line\n"
                      f"command_line.CONFIGS = pathlib.Path({str(configs)!r})\n"
                      "from qwen3asr_train.__main__ import main\nraise SystemExit(main())\n")
    done = subprocess.run([sys.executable, script, "stage=sft", "experiment=typo"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert "unknown config key 'trainer.max_stepz'" in last_error(done)


@pytest.mark.parametrize("arguments", [
    ["stage=omni", "init_from=/nowhere"], ["stage=aligner", "init_from=/nowhere"],
    ["stage=sft", "data=shards", "data.train=/nowhere"]])
def test_debug_leaves_out_what_a_stage_or_its_data_do_not_have(arguments, tmp_path):
    done = subprocess.run([sys.executable, "-m", "qwen3asr_train", *arguments, "debug=quick",
                           f"run_dir={tmp_path}"], capture_output=True, text=True)
    assert "/nowhere" in last_error(done) and "config" not in last_error(done)
    config = OmegaConf.load(tmp_path / "config.yaml")
    assert config.trainer.max_steps == 4
    assert OmegaConf.select(config, "data.corpus.train_samples") in (None, 64)


@pytest.mark.parametrize("group", ["model", "data", "strategy", "logger", "trainer", "stage",
                                   "debug"])
def test_every_config_composes(group):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        for path in (command_line.CONFIGS / group).glob("*.yaml"):
            stage = path.stem if group == "stage" else "sft"
            config = compose("config", [f"stage={stage}", *(
                [f"{group}={path.stem}"] if group != "stage" else [])])
            assert config.stage.name == stage
    assert __main__.new_run_dir("sft", None).startswith("runs/sft/")


def stage_of(experiment: str) -> str:
    """The stage an experiment is for, by its name: stage=sft unless it says so."""
    names = {"aligner", "aut", "omni", "rl"} & set(experiment.split("_"))
    return "sft" if "control" in experiment else names.pop() if names else "sft"


@pytest.mark.parametrize("experiment", sorted(
    path.stem for path in (command_line.CONFIGS / "experiment").glob("*.yaml")))
def test_every_experiment_sets_fields_of_its_stage(experiment, monkeypatch):
    overrides = [f"stage={stage_of(experiment)}", f"experiment={experiment}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        chosen = compose("config", overrides, return_hydra_config=True).hydra.runtime.choices
        monkeypatch.setattr(config_checks, "_groups", lambda: chosen)
        config_checks.check(compose("config", overrides))


@pytest.fixture(scope="module")
def recordings(corpus, tmp_path_factory):
    """A folder with a wav, an mp3 in stereo at 44.1 kHz, a long ogg, and one that is broken."""
    folder = tmp_path_factory.mktemp("audio") / "it's (1), 录音 {x}"
    folder.mkdir()
    entries = read_entries(find_shards(corpus["test"])[0])[:2]
    first, second = (decode(ShardReader().read(entry)[1]) for entry in entries)
    soundfile.write(folder / "a.wav", first, 16_000)
    stereo = np.stack([second, second], 1).repeat(3, axis=0)[::1]
    soundfile.write(folder / "b.mp3", stereo, 48_000)
    soundfile.write(folder / "long.ogg", np.tile(first, 30), 16_000)
    (folder / "broken.flac").write_bytes(b"fLaC nothing")
    return folder


def test_transcribe_prints_one_line_a_file(command_line, finished_run, recordings, tmp_path):
    arguments = ["stage=transcribe", f"init_from={finished_run / 'model'}", f"audio={recordings}",
                 "context=Names: Anna, Bob (it's him)", "stage.decoding.max_new_tokens=4",
                 "stage.decoding.max_piece_seconds=10"]
    done = command_line(*arguments, "format=jsonl", small=False, cwd=tmp_path, check=False)
    assert done.returncode == 1  # one could not be read
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["audio"].rsplit("/", 1)[1] for row in rows] == ["a.wav", "b.mp3", "long.ogg"]
    assert {"language", "text", "duration"} <= rows[0].keys() and rows[2]["duration"] > 20
    assert "broken.flac: not readable" in done.stderr
    assert list(tmp_path.iterdir()) == []  # no run folder
    text = command_line(*arguments, "language=zh", small=False, cwd=tmp_path,
                        check=False).stdout.splitlines()
    assert len(text) == 3 and all(line.split("\t")[1] == "Chinese" for line in text)


def test_evaluate_gives_what_the_run_reported(command_line, finished_run, corpus, tmp_path):
    command_line("stage=evaluate", f"init_from={finished_run / 'model'}", "data.workers=0",
                 f"data.test={corpus['test']}", f"run_dir={tmp_path}",
                 "stage.decoding.max_new_tokens=6", small=False)
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = json.loads((finished_run / "metrics.json").read_text())
    for name in ("test/wer", "test/cer", "test/lid_accuracy"):
        assert found[name] == expected[name]


def test_an_export_says_what_the_run_says(command_line, finished_run, recordings, tmp_path):
    told = ["out=exported", f"init_from={finished_run / 'model'}"]
    done = command_line("stage=export", *told, "stage.dtype=float32", small=False, cwd=tmp_path)
    assert "M parameters, float32" in done.stdout
    assert "name a new folder" in last_error(
        command_line("stage=export", *told, small=False, cwd=tmp_path, check=False))
    lines = [command_line("stage=transcribe", f"init_from={folder}",
                          f"audio={recordings / 'a.wav'}", small=False, cwd=tmp_path).stdout
             for folder in (finished_run / "model", "exported")]
    assert lines[0] == lines[1] and "a.wav" in lines[0]


@pytest.fixture
def interruptible():
    """Processes that are started hear Ctrl-C, also where this one is in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_how_to_go_on(command_line, corpus, tmp_path):
    running = command_line("stage=sft", f"data.train={corpus['train']}", f"run_dir={tmp_path}",
                           "trainer.max_steps=100000", "trainer.validate_every=0", popen=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130 and "error: stopped; go on with resume=auto" in errors


def test_a_finished_run_keeps_its_record(command_line, finished_run, corpus, tmp_path):
    run = tmp_path / "0_seed=0"  # as the folders of a sweep are called
    shutil.copytree(finished_run, run)
    record = (run / "config.yaml").read_bytes()
    for arguments, message in (
            (["stage=sft", f"data.train={corpus['train']}", "seed=5"], "of an earlier run"),
            (["stage=evaluate", f"init_from={run / 'model'}", f"data.test={corpus['test']}"],
             "holds a run of stage=sft: name another folder")):
        refused = command_line(*arguments, f"run_dir={run}", small=False, check=False)
        assert message in last_error(refused)
    assert (run / "config.yaml").read_bytes() == record


def test_the_same_key_in_two_test_folders(command_line, finished_run, corpus, tmp_path):
    for name in "ab":
        shutil.copytree(corpus["test"], tmp_path / name)
    command_line("stage=evaluate", f"init_from={finished_run / 'model'}", "data.workers=0",
                 f"data.test=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"run_dir={tmp_path / 'run'}",
                 "stage.decoding.max_new_tokens=6", small=False)
    results = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in results]
    assert len(keys) == len(set(keys)) == 2 * sum(
        len(read_entries(shard)) for shard in find_shards(corpus["test"]))


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "my.jsonl").touch()
    with pytest.raises(UserError, match=r"my\.jsonl: not a \.tar .*data_prep\.jsonl"):
        find_shards(str(tmp_path / "my.jsonl"))


@pytest.mark.parametrize(("value", "grammar"), [
    ("it's", '"it\'s"'), ('"Anna" and "Peter"', '"\\"Anna\\" and \\"Peter\\""'),
    ("'tis the season, 'tis'", '"\'tis the season, \'tis\'"'), ("'quoted'", "'quoted'")])
def test_free_text_is_taken_as_it_is(value, grammar):
    assert command_line.check_arguments(["stage=sft", f"context={value}"]) == [
        "stage=sft", f"stage.context={grammar}"]


def test_lora_adapters_follow_the_seed(finished_run):
    options = OmegaConf.load(command_line.CONFIGS / "model" / "tiny.yaml").lora
    options.rank = 4

    def adapters(seed: int) -> list[torch.Tensor]:
        model, _ = asr.load(str(finished_run / "model"))
        add_lora(model, options, seed)
        return [weight for name, weight in model.named_parameters() if "lora_A" in name]

    torch.manual_seed(5)
    first, again, other = adapters(0), adapters(0), adapters(1)
    assert first and all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_lora_freezing_and_wandb_offline(command_line, finished_run, corpus, tmp_path):
    """LoRA on a trained model, its encoder frozen, logged to wandb without an account."""
    command_line("stage=sft", f"init_from={finished_run / 'model'}", "model.lora.rank=4",
                 "model.freeze=[model.audio_tower.*]", "logger=wandb", f"run_dir={tmp_path}",
                 f"data.train={corpus['train']}", f"data.test={corpus['test']}",
                 "trainer.max_steps=3", "trainer.validate_every=0", WANDB_SILENT="true")
    before = load_file(finished_run / "model" / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys()  # adapters are merged
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("language_model.layers" in name for name in changed)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    file, = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert (tmp_path / "wandb_id").read_text() in file.name
    written = file.read_bytes()  # of its records, keys and values are plain text
    for field in (b"max_steps", b"lr_from_scratch", b"test/wer", b"train/loss"):
        assert field in written


def test_truncated_training_shard_is_named(command_line, corpus, tmp_path):
    shutil.copytree(corpus["train"], tmp_path / "train")
    shard = next((tmp_path / "train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:5000])
    error = last_error(command_line("stage=sft", f"data.train={tmp_path / 'train'}", check=False))
    assert str(shard) in error and "5000 bytes" in error and "python -m data_prep.index" in error


def test_unusable_samples_stop_a_run_or_are_counted(command_line, corpus, tmp_path):
    shutil.copytree(corpus["train"], tmp_path / "train")
    shard = next((tmp_path / "train").glob("*.tar"))
    entry = read_entries(shard)[3]
    with open(shard, "r+b") as file:  # overwrite one sample's audio
        file.seek(entry.audio_at[0])
        file.write(b"\0" * entry.audio_at[1])
    short = ["stage=sft", f"data.train={tmp_path / 'train'}", "trainer.max_steps=9",
             "trainer.validate_every=0", "stage.test=false"]
    assert f"{shard}:{entry.key}" in last_error(
        command_line(*short, f"run_dir={tmp_path / 'a'}", check=False))
    command_line(*short, f"run_dir={tmp_path / 'b'}", "data.max_bad_samples=1")
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["train/skipped_samples"] == 1
    scored = command_line("stage=evaluate", f"init_from={tmp_path / 'b' / 'model'}",
                          f"data.test={tmp_path / 'train'}", "data.max_bad_samples=1", small=False)
    assert f"not scored: {shard}:{entry.key}" in scored.stderr
    validated = ["stage=sft", f"data.validation={tmp_path / 'train'}", "trainer.validate_every=1",
                 f"data.train={corpus['train']}", "trainer.max_steps=2", "stage.test=false"]
    assert f"{shard}:{entry.key}" in last_error(command_line(
        *validated, f"run_dir={tmp_path / 'c'}", check=False))
    told = command_line(*validated, f"run_dir={tmp_path / 'd'}", "data.max_bad_samples=1").stderr
    assert told.count(f"not scored: {shard}:{entry.key}") == 1  # not at each validation


def test_a_sweep_is_what_its_runs_are_one_by_one(command_line, corpus, tmp_path):
    """With more overrides, and one with a path, than a folder's name can hold."""
    steps = ["stage=sft", f"data.train={corpus['train']}", "trainer.max_steps=3",
             "trainer.validate_every=0", "stage.test=false"]
    command_line(*steps, "--multirun", "seed=0,1", cwd=tmp_path)
    command_line(*steps, "seed=1", f"run_dir={tmp_path / 'alone'}")
    sweep, = (tmp_path / "runs" / "sft").iterdir()
    assert {folder.name for folder in sweep.iterdir() if folder.is_dir()} == {"0", "1"}
    first, second, alone = (load_file(folder / "model" / "model.safetensors")
                            for folder in (sweep / "0", sweep / "1", tmp_path / "alone"))
    assert all(torch.equal(second[name], value) for name, value in alone.items())
    assert not all(torch.equal(first[name], value) for name, value in alone.items())


def test_folders_of_a_sweep_are_told_apart():
    assert __main__.sweep_folder(3, "seed=0,trainer.max_steps=9") == \
        "3_seed=0,trainer.max_steps=9"
    assert __main__.sweep_folder(3, "data.train=/shards/mine") == "3"
    assert __main__.sweep_folder(3, "é" * 200) == "3"
