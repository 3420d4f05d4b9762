"""Rendered pictures and the embedded corpus of all modalities."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep import films, pictures
from data_prep.embedded import split_of
from data_prep.embedded_omni import SOURCES, OmniCorpus, ensure_corpus, make_sample
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.errors import UserError

SMALL = OmniCorpus(train_samples=6, picture_factor=1, test_samples=3)


def pixels(scene, seed=0):
    payload = pictures.draw(scene, np.random.default_rng(seed))
    return np.asarray(Image.open(io.BytesIO(payload))).astype(int)


@pytest.mark.parametrize("seed", range(20))
def test_what_the_caption_says_is_in_the_picture(seed):
    scene = pictures.single(np.random.default_rng(seed))
    thing = scene.things[0]
    seen = pixels(scene, seed)
    distance = {name: np.abs(seen - colour).sum(-1) for name, colour in pictures.COLOURS.items()}
    painted = distance[thing.colour] < 60
    assert painted.sum() > 20
    for name in distance.keys() - {thing.colour}:
        assert (distance[name] < 30).sum() < painted.sum() / 4
    y, x = (axis.mean() for axis in np.nonzero(painted))
    assert (int(y // (pictures.SIDE / 3)), int(x // (pictures.SIDE / 3))) == divmod(thing.cell, 3)
    assert scene.caption == f"a {thing.colour} {thing.shape} at the {thing.place}"


@pytest.mark.parametrize("make", pictures.SCENES)
def test_answers_are_in_the_caption(make):
    for seed in range(10):
        scene = make(np.random.default_rng(seed))
        for _, answer in scene.questions:
            assert answer in scene.caption


def pitch_of(waveform):
    """The median over pieces of 50 ms, in Hz, by autocorrelation."""
    found, shortest, longest = [], SAMPLE_RATE // 450, SAMPLE_RATE // 55
    for piece in waveform[:len(waveform) // 800 * 800].reshape(-1, 800).astype(float):
        if np.square(piece).mean() > 1e-4:
            alike = np.correlate(piece, piece, "full")[799:] / np.arange(800, 0, -1)
            best = shortest + int(np.argmax(alike[shortest:longest]))
            if alike[best] > 0.6 * alike[0]:
                found.append(SAMPLE_RATE / best)
    return np.median(found)


def test_a_high_voice_is_higher_than_any_low_one():
    heard = {"low": [], "high": []}
    for split in ("train", "test"):
        for number in range(0, 90, 3):  # every third is a voice
            sample = make_sample(OmniCorpus(), "sounds", split, number)
            heard[sample.record["text"].split()[1]].append(pitch_of(sample.waveform))
    assert len(heard["low"]) > 10 and len(heard["high"]) > 10
    assert max(heard["low"]) < 135 and min(heard["high"]) > 150


@pytest.mark.parametrize("direction", films.DIRECTIONS)
def test_a_film_moves_as_its_caption_says(direction):
    for seed, shape in enumerate(pictures.SHAPES):
        shown = films.Motion(shape, "blue", direction)
        frames, times = films.draw(shown, np.random.default_rng(seed))
        assert shown.caption == f"a blue {shape} moves {direction}"
        assert len(frames) == len(times) >= 6 and np.diff(times) == pytest.approx(0.25)
        middles = []
        for frame in frames:
            seen = np.asarray(Image.open(io.BytesIO(frame))).astype(int)
            painted = np.abs(seen - pictures.COLOURS["blue"]).sum(-1) < 60
            middles.append([axis.mean() for axis in np.nonzero(painted)[::-1]])  # x, y
        steps = np.diff(middles, axis=0)
        moving, still = (0, 1) if direction in ("left", "right") else (1, 0)
        sign = 1 if direction in ("right", "down") else -1
        assert (sign * steps[:, moving] > 0.5).all() and np.abs(steps[:, still]).max() < 0.5


def test_every_font_prints_every_word_inside_the_picture():
    for seed in range(40):
        ink = (pixels(pictures.printed("kitchen"), seed) < 128).any(-1)
        assert ink.sum() > 30
        assert not ink[[0, -1]].any()


def test_a_sample_is_a_pure_function():
    for source in SOURCES:
        a, b = (make_sample(SMALL, source, "train", 4) for _ in range(2))
        assert a.record == b.record and a.picture == b.picture and a.frames == b.frames
        assert (a.waveform is None and b.waveform is None) or \
            np.array_equal(a.waveform, b.waveform)


def test_corpus_folders_and_held_out_scenes(tmp_path):
    folders = ensure_corpus(SMALL, tmp_path)
    reader = ShardReader()
    for split, count in (("train", 6), ("test", 3)):
        assert list(folders[split]) == list(SOURCES)
        for source, folder in folders[split].items():
            entries = [e for shard in find_shards(folder) for e in read_entries(shard)]
            assert len(entries) == count
            for entry in entries:
                record = reader.read_record(entry)
                assert bool(entry.image_at) == (source in ("captions", "questions", "words",
                                                           "spoken_questions"))
                assert bool(entry.audio_at) == (source in ("speech", "long_speech", "sounds",
                                                           "spoken_questions", "sounding_films"))
                assert bool(entry.frames_at) == (source in ("films", "sounding_films"))
                if record.get("task") in ("image_caption", "film_caption"):
                    assert split_of(record["text"]) == split
    before = sorted(tmp_path.rglob("*.tar"))[0].stat().st_mtime_ns
    ensure_corpus(SMALL, tmp_path)
    assert sorted(tmp_path.rglob("*.tar"))[0].stat().st_mtime_ns == before


def test_more_of_what_costs_nothing():
    corpus = OmniCorpus(train_samples=7, picture_factor=3, test_samples=2)
    assert corpus.samples("words", "train") == corpus.samples("captions", "train") == 21
    assert corpus.samples("spoken_questions", "train") == corpus.samples("films", "train") == 7
    assert corpus.samples("captions", "test") == 2


@pytest.mark.parametrize(("field", "value"), [("languages", ("Elvish",)), ("picture_factor", 0)])
def test_a_field_that_makes_no_sense(field, value):
    with pytest.raises(UserError, match=rf"data\.corpus\.{field}"):
        OmniCorpus(**{field: value})
