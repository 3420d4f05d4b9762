"""Samples of any modality: measured, packed, and what cannot be used."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2Tokenizer
from webdataset import WebDataset

from data_prep.index import main as index_shards
from qwen3asr_train.data import features, pictures
from qwen3asr_train.data.audio import encode
from qwen3asr_train.data.omni import OmniDataset, SampleReader, measured, prompts
from qwen3asr_train.data.packing import Item, OmniCell
from qwen3asr_train.data.pictures import PictureFormat
from qwen3asr_train.data.shards import ShardReader, ShardWriter, read_entries
from qwen3asr_train.data.tasks import Task, TaskBuilder
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.models import asr, omni
from qwen3asr_train.models.tokenizer import add_vision_tokens, make_processor, train_tokenizer
from tests.data.test_positions import (
    AUDIO,
    HEARD,
    HEARD_END,
    IMAGE,
    SEEN,
    SEEN_END,
    TEXT,
    VIDEO,
    theirs,
)

FORMAT = PictureFormat(patch=4, merge=2, frames=2, least_tokens=1, most_tokens=12,
                       film_tokens=4)
TASKS = {
    "asr": Task(("audio",), ("", "Write it down."), "language {language}<asr_text>{text}", True),
    "image_caption": Task(("image",), ("Describe the picture.", "What is there to see?")),
    "spoken_question": Task(("image", "audio"), ("",)),
    "question": Task(("image",), ("{question}", "Answer: {question}")),
    "film_caption": Task(("film",), ("What happens?", "Describe the film.")),
    "film_with_sound": Task(("film", "audio"), ("What can be seen and heard?",)),
    "text": Task(),
}
SIZES = {
    "audio_config": dict(num_mel_bins=128, d_model=16, encoder_layers=1, encoder_attention_heads=2,
                         encoder_ffn_dim=24, downsample_hidden_size=4, initializer_range=0.2),
    "text_config": dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, head_dim=12,
                        tie_word_embeddings=True, initializer_range=0.3),
}
VISION = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4,
              spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=16,
              deepstack_visual_indexes=[0], initializer_range=0.2)


def picture(rng, width=20, height=12, kind="png"):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def sound(rng, seconds):
    return encode(0.1 * rng.standard_normal(round(16000 * seconds)).astype(np.float32), "wav")


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return add_vision_tokens(train_tokenizer(["a red circle, a house system user"] * 4, 300))


@pytest.fixture(scope="module")
def reader(tokenizer):
    return SampleReader(TaskBuilder(tokenizer, TASKS), FORMAT)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for i, kind in enumerate(("png", "jpeg", "webp")):
            writer.write(f"caption{i}", {"text": f"a red circle {i}", "task": "image_caption"},
                         image=picture(rng, 10 + 12 * i, 30, kind), image_extension=kind)
            writer.write(f"asr{i}", {"text": "a house", "language": "English", "duration": 0.7 + i},
                         sound(rng, 0.7 + i), "wav")
            writer.write(f"both{i}", {"text": "two", "task": "spoken_question", "duration": 0.6},
                         sound(rng, 0.6), "wav", image=picture(rng), image_extension="png")
            writer.write(f"text{i}", {"text": "a house is red " * (i + 1), "task": "text"})
            film = {"text": "a ball", "frame_times": [0.25 * n for n in range(3 * i + 1)]}
            frames = [picture(rng, 16, 24, kind) for _ in film["frame_times"]]
            writer.write(f"film{i}", film | {"task": "film_caption"}, frames=frames,
                         image_extension=kind)
            writer.write(f"heard{i}", film | {"task": "film_with_sound", "duration": 0.4 + i},
                         sound(rng, 0.4 + i), "wav", frames=frames, image_extension=kind)
            writer.write(f"asked{i}", {"text": "blue", "task": "question", "question": "which?"},
                         image=picture(rng))
    return read_entries(writer.paths[0])


@pytest.fixture(scope="module")
def model(tokenizer):
    processor = make_processor(tokenizer)
    return omni.build(asr.build(SIZES, processor, seed=0), processor, VISION, seed=1).eval()


def items(reader, entries):
    return [Item(e, 0, way, n, "all") for e in entries
            for way, n in enumerate(reader.measure(e))]


def test_measured_lengths_are_those_built(reader, entries):
    assert len(entries) == 21
    for item in items(reader, entries):
        _, example = reader.example(item.entry, item.way)
        assert len(example.tokens.ids) == item.tokens == len(example.tokens.labels)
        assert example.tokens.positions.shape == (4, item.tokens)


def test_wrong_tokens_stand_before_the_right_next(reader, entries, tokenizer):
    changed = may_change = 0
    for item in items(reader, entries):
        cell = OmniCell(0, (item,))
        right = OmniDataset(reader, 160)[cell]["inputs"]
        wrong = OmniDataset(reader, 160, wrong_token_share=0.4, seed=5)[cell]["inputs"]
        again = OmniDataset(reader, 160, wrong_token_share=0.4, seed=5)[cell]["inputs"]
        assert all(torch.equal(again[name], value) for name, value in wrong.items())
        assert all(torch.equal(right[name], value) for name, value in wrong.items()
                   if name != "input_ids")
        differ = (right["input_ids"] != wrong["input_ids"])[0]
        answer = right["labels"][0] >= 0
        assert not differ[~answer].any() and not differ[-1]
        assert wrong["input_ids"][0][differ].lt(tokenizer.vocab_size).all()
        if not right["clip_tokens"].numel() and right["pixel_values"].eq(0).all():
            assert not differ.any()  # text alone
        else:
            changed, may_change = changed + differ.sum(), may_change + answer.sum() - 1
    assert 0.3 < changed / may_change < 0.45


def test_packed_and_alone_give_the_same_loss(reader, entries, model):
    found = items(reader, entries)
    batch = OmniDataset(reader, 160)[OmniCell(0, tuple(found))]
    rows = batch["inputs"]["input_ids"].shape[0]
    assert rows < len(found) / 2 and not batch["meta"]["skipped"]
    alone = [OmniDataset(reader, 160)[OmniCell(0, (item,))] for item in found]
    with torch.no_grad():
        packed = model.target_loss(batch["inputs"], with_ctc=True)
        single = [model.target_loss(one["inputs"], with_ctc=True) for one in alone]
    for a, b in zip(packed, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(a, sum(b), rtol=1e-5, atol=1e-5)
    assert batch["meta"]["target_tokens"] == sum(o["meta"]["target_tokens"] for o in alone)
    assert batch["meta"]["source_tokens"] == {"all": sum(item.tokens for item in found)}
    assert int((batch["inputs"]["labels"] != -100).sum()) == batch["meta"]["target_tokens"]


def test_labels_token_by_token(reader, entries, tokenizer):
    for entry in entries:
        record, example = reader.example(entry, 0)
        target = [t for t in example.tokens.labels if t != -100]
        answer = f"{record['text']}<|im_end|>"
        if entry.key.startswith("asr"):
            answer = f"language English<asr_text>{answer}"
        if entry.key.startswith("text"):
            answer = f"{record['text']}<|endoftext|>"
        assert tokenizer.decode(target) == answer
        assert example.tokens.ids[-len(target):] == target


def test_prompts_on_the_left(reader, entries):
    examples = [reader.example(entry, 0)[1] for entry in entries
                if entry.image_at or entry.frames_at]
    batch = prompts(examples, reader.tasks.pad_id, FORMAT)
    for row, example in enumerate(examples):
        real = batch["prompt_mask"][row].bool()
        kept = len(example.tokens.ids) - example.tokens.answer
        assert batch["prompt_ids"][row][real].tolist() == example.tokens.ids[:kept]
        assert torch.equal(batch["prompt_positions"][:, row, real],
                           example.tokens.positions[1:, :kept])


def test_what_cannot_be_used_is_named_and_counted(reader, tmp_path):
    rng = np.random.default_rng(1)
    whole = picture(rng, 40, 40)
    bad = {
        "no_picture": ({"text": "a", "task": "image_caption"}, None, "without its image"),
        "no_file": ({"text": "a", "task": "image_caption"}, b"GIF89a", "no picture that can"),
        "sneaky": ({"text": "a <|image_pad|> b", "task": "image_caption"}, whole, "control token"),
        "no_task": ({"text": "a", "task": "dance"}, None, "task 'dance' is not in stage.tasks"),
        "no_question": ({"text": "a", "task": "question"}, whole, "'question' must be a string"),
        "spare": ({"text": "a", "task": "text"}, whole, "does not use the image"),
    }
    with ShardWriter(tmp_path) as writer:
        for key, (record, image, _) in bad.items():
            writer.write(key, record, image=image)
        writer.write("long", {"text": "a house " * 300, "task": "text"})
        writer.write("good", {"text": "a", "task": "image_caption"}, image=whole)
        writer.write("cut", {"text": "a", "task": "image_caption"}, image=whole[:-400])
    source, unusable = measured("mine", [str(writer.paths[0])], reader, 160, 0)
    usable = [entry for entry, _ in reader.measure_shard(str(writer.paths[0]))[0]]
    assert [e.key for e in usable] == ["long", "good", "cut"]  # the first for longer rows
    assert {item.entry.key for item in source.between(0, 200)} == {"good", "cut"}
    with pytest.raises(UserError, match=r"more unusable samples .*no_picture: task"):
        measured("mine", [str(writer.paths[0])], reader, 160, 0, most_bad=5)
    for message, (key, (_, _, reason)) in zip(unusable, bad.items(), strict=True):
        assert key in message and reason in message
    # the header of the cut file is whole: it is found out when its picture is read
    batch = OmniDataset(reader, 160)[OmniCell(0, tuple(
        Item(e, 0, 0, 30, "mine") for e in usable[1:]))]
    assert [e.key for e in batch["meta"]["entries"]] == ["good"]
    assert "cut: a picture that does not decode" in batch["meta"]["skipped"][0]
    assert len(batch["inputs"]["grid_thw"]) == 1


@pytest.mark.parametrize("key", ["film2", "heard1", "heard2"])
def test_positions_of_films_are_those_of_qwen3_omni(reader, entries, tokenizer, key):
    """From the token ids alone; its films have the time of their first frame of two."""
    entry = next(entry for entry in entries if entry.key == key)
    _, example = reader.example(entry, 0)
    kinds = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|audio_pad|>": AUDIO,
             "<|vision_start|>": SEEN, "<|vision_end|>": SEEN_END, "<|audio_start|>": HEARD,
             "<|audio_end|>": HEARD_END}
    ids = [kinds.get(token, TEXT) for token in tokenizer.convert_ids_to_tokens(example.tokens.ids)]
    steps = (len(entry.frames_at) + 1) // 2
    assert ids.count(VIDEO) == steps * 2 and example.seen[:2] == (2, 1)
    frames = [] if example.mel is None else [len(example.mel)]
    assert ids.count(AUDIO) == sum(features.audio_tokens(count) for count in frames)
    expected = theirs(ids, frames, [], [[steps, 4, 2]], bool(frames))
    torch.testing.assert_close(example.tokens.positions[1:], expected)


def test_patches_of_a_film_keep_what_is_when(reader):
    """Frames put together again from their patches; the last is shown to the end of its patch."""
    rng = np.random.default_rng(4)
    frames = [Image.fromarray(rng.integers(0, 255, (16, 8, 3), dtype=np.uint8)) for _ in range(3)]
    patches, (rows, columns) = FORMAT.film_patches(frames)
    assert (rows, columns) == (2, 1)
    again = patches.view(2, rows, columns, 2, 2, 3, 2, 4, 4)  # step, token, patch, colour, frame
    again = again.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(4, 16, 8, 3)
    expected = np.stack([np.asarray(frame) for frame in (*frames, frames[-1])])
    np.testing.assert_allclose((again.numpy() + 1) * 127.5, expected, atol=0.01)


def test_films_that_cannot_be_used(reader, tmp_path, capsys):
    rng, tar = np.random.default_rng(5), tmp_path / "films-0.tar"
    whole, small = picture(rng, 16, 24, "jpeg"), picture(rng, 24, 16, "jpeg")

    def film(times, *frames, text="a ball"):
        return {"json": json.dumps({"text": text, "frame_times": times}).encode()} | {
            f"{number:03d}.jpg": frame for number, frame in enumerate(frames)}

    with tarfile.open(tar, "w") as file:
        for key, members in {
                "none": film([]), "timeless": {"json": b'{"text": "a"}', "000.jpg": whole},
                "short": film([0.0], whole, whole), "back": film([1.0, 0.5], whole, whole),
                "nan": film([0.0, float("nan")], whole, whole), "wordless": film([0.0], whole,
                                                                                text=""),
                "good": film([0.0, 0.5], whole, whole), "cut": film([0, 1], whole, whole[:-200]),
                "turned": film([0, 1, 2], whole, whole, small)}.items():
            for ending, payload in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(payload)
                file.addfile(info, io.BytesIO(payload))
    index_shards([str(tar)])
    printed = capsys.readouterr().err
    assert "timeless: 'frame_times' must be 1" in printed and "nan: 'frame_times'" in printed
    assert "short: 'frame_times' must be 2" in printed and "back: 'frame_times'" in printed
    found = read_entries(tar)
    assert [e.key for e in found] == ["none", "wordless", "good", "cut", "turned"]
    source, unusable = measured("films", [str(tar)], reader, 160, 0)
    assert "none: task 'asr' without its audio" in unusable[0]
    assert "wordless: empty text" in unusable[1] and len(unusable) == 2
    assert {item.entry.key for item in source.between(0, 500)} == {"good", "cut", "turned"}
    batch = OmniDataset(reader, 160)[OmniCell(0, tuple(
        Item(e, 0, 0, 30, "films") for e in found[2:]))]
    assert [e.key for e in batch["meta"]["entries"]] == ["good"]
    cut, turned = batch["meta"]["skipped"]
    assert "cut frame 2: a picture that does not decode" in cut
    assert "turned frame 3: 24 x 16 pixels, the first frame has 16 x 24" in turned


def test_films_are_what_webdataset_reads(entries):
    found = {sample["__key__"]: sample
             for sample in WebDataset(entries[0].shard, shardshuffle=False)}
    reader = ShardReader()
    for entry in entries:
        names = sorted(name for name in found[entry.key] if re.fullmatch(r"\d+\.\w+", name))
        assert [found[entry.key][name] for name in names] == list(reader.read_frames(entry))
        assert len(names) == len(json.loads(found[entry.key]["json"]).get("frame_times", []))


def test_a_cell_without_a_sample_still_runs(reader, model):
    batch = OmniDataset(reader, 160)[OmniCell(0, ())]
    loss, ctc = model.target_loss(batch["inputs"], with_ctc=True)
    (loss + ctc).backward()
    assert float(loss.detach()) == 0 and batch["meta"]["target_tokens"] == 0


def test_captions_as_found_in_the_wild(reader, tmp_path, capsys):
    rng, tar = np.random.default_rng(2), tmp_path / "wild-0.tar"
    with tarfile.open(tar, "w") as file:
        for name, payload in (("a.jpg", picture(rng, kind="jpeg")), ("a.txt", b"a red circle\n"),
                              ("b.webp", picture(rng, kind="webp")),
                              ("b.json", b'{"caption": "a house", "url": "x"}'),
                              ("d.png", picture(rng)),
                              ("d.json", b'{"question": "what colour?", "text": "red"}'),
                              ("c.txt", b"no picture")):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            file.addfile(info, io.BytesIO(payload))
    index_shards([str(tar)])
    assert "c" in capsys.readouterr().err
    found = read_entries(tar)
    records = [ShardReader().read_record(entry) for entry in found]
    assert [r["text"] for r in records] == ["a red circle", "a house", "red"]
    assert [r["task"] for r in records] == ["image_caption", "image_caption", "visual_question"]
    assert [reader.example(e, 0)[0]["text"] for e in found[:2]] == ["a red circle", "a house"]


def test_a_task_with_media_has_a_prompt():
    with pytest.raises(UserError, match="no prompts, but needs image"):
        Task(("image",), ())


def test_a_picture_too_narrow_is_named_when_it_is_read(reader, tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("spacer", {"text": "a", "task": "image_caption"},
                     image=picture(np.random.default_rng(0), 2, 500))
    entry, = read_entries(writer.paths[0])
    for read in (reader.measure, lambda entry: reader.example(entry, 0)):
        with pytest.raises(DataError, match="spacer: absolute aspect ratio"):
            read(entry)


@pytest.mark.parametrize("notes", [b"Exif\0\0nothing", b"Exif\0\0II*\0\x08\0\0\0\x01\0"])
def test_a_cameras_notes_that_cannot_be_read_say_nothing(notes):
    file = io.BytesIO()
    Image.new("RGB", (20, 12)).save(file, "webp", exif=notes)
    assert pictures.size_of(file.getvalue(), "x") == (20, 12)
    assert pictures.decode(file.getvalue(), "x").size == (20, 12)


def test_patches_keep_what_is_where(reader):
    """A picture put together again from its patches."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8))
    patches, (rows, columns) = FORMAT.patches(image)
    assert (rows, columns) == (2, 3)
    again = patches.view(rows, columns, 2, 2, 3, 2, 4, 4)[..., 0, :, :]  # of the first frame
    again = again.permute(0, 2, 5, 1, 3, 6, 4).reshape(16, 24, 3)
    np.testing.assert_allclose((again.numpy() + 1) * 127.5, np.asarray(image), atol=0.01)


def test_pictures_are_upright_and_on_white():
    lying, exif = Image.new("RGB", (40, 20), "red"), Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by a quarter
    assert shown(lying, "JPEG", exif=exif).size == (20, 40)
    assert shown(lying, "PNG").size == (40, 20)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert shown(clear, "PNG").getpixel((1, 1)) == (255, 255, 255)
    with pytest.raises(DataError, match="more than 8 bits"):
        shown(Image.new("I;16", (4, 4)), "PNG")


def shown(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    found = pictures.decode(file.getvalue(), "a")
    assert found.mode == "RGB"
    assert pictures.size_of(file.getvalue(), "a") == found.size
    return found
