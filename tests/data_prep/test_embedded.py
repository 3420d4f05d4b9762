"""Sounds and conversations of the embedded corpus."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from data_prep.embedded import SPLITS, Corpus, make_sample, voices
from data_prep.sentences import vocabulary
from data_prep.sounds import KINDS, make_sound
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.augment_join import join_texts
from qwen3asr_train.errors import UserError


def samples(corpus: Corpus, split: str, count: int) -> list[tuple[dict, np.ndarray]]:
    made = [make_sample(corpus, split, number) for number in range(count)]
    return [(record, soundfile.read(io.BytesIO(audio))[0]) for _, record, audio in made]


def test_shares_are_kept_and_records_tell_what_is_heard():
    corpus = Corpus(sound_share=0.2, conversation_share=0.3)
    made = [record for record, _ in samples(corpus, "train", 200)]
    sounds = [r for r in made if r["task"] == "nonspeech"]
    conversations = [r for r in made if r["meta"].get("speakers") == 2]
    assert 20 <= len(sounds) <= 60 and 40 <= len(conversations) <= 80
    assert {r["meta"]["sound"] for r in sounds} <= {*KINDS, "babble"}
    assert all(r["text"] == "" and r["language"] is None for r in sounds)
    assert {r["meta"]["speakers"] for r in made if r["task"] == "asr"} == {1, 2}


def test_a_conversation_has_the_words_of_both_in_time_order():
    corpus = Corpus(conversation_share=1.0)
    for record, waveform in samples(corpus, "test", 20):
        joiner = "" if record["language"] == "Chinese" else " "
        assert joiner.join(word for word, *_ in record["words"]) == record["text"]
        times = [time for _, *both in record["words"] for time in both]
        assert times == sorted(times) and times[-1] <= record["duration"]
        assert record["duration"] == pytest.approx(len(waveform) / 16_000, abs=1e-3)
        assert record["meta"]["variant"] in voices("test")


def test_pauses_between_sentences():
    plain, paused = Corpus(sentences=(3, 3)), Corpus(sentences=(3, 3), pause_seconds=(0.5, 0.5))
    for number in range(5):
        (_, without, _), (_, record, audio) = (make_sample(c, "train", number)
                                              for c in (plain, paused))
        waveform = soundfile.read(io.BytesIO(audio))[0]
        assert record["duration"] == pytest.approx(len(waveform) / 16_000, abs=1e-3)
        gaps = [after[1] - before[2] for before, after in
                zip(record["words"], record["words"][1:], strict=False)]
        assert sum(gap >= 0.49 for gap in gaps) == 2
        for _, start, end in record["words"]:
            assert np.abs(waveform[int(start * 16_000):int(end * 16_000)]).max() > 0.01
        first = next(i for i, gap in enumerate(gaps) if gap >= 0.49) + 1
        assert record["words"][:first] == without["words"][:first]


def test_names_of_several_spellings():
    languages = ("English", "Chinese", "Korean")
    corpus = Corpus(languages=languages, entity_share=1.0, sentences=(1, 3))
    for record, _ in samples(corpus, "test", 30):
        if record["language"] == "Korean":
            assert "entities" not in record  # a language without such names
            continue
        (entity,), others = record["entities"], record["meta"]["sounds_like"]
        assert entity in record["text"] and others and entity not in others
        joiner = "" if record["language"] == "Chinese" else " "
        assert joiner.join(word for word, _, _ in record["words"]) == record["text"]


def test_text_alone_has_names_as_they_are_said():
    corpus = Corpus(languages=("English", "Korean"), text_share=1.0, entity_share=1.0)
    held = set()
    for number in range(40):
        _, record, audio = make_sample(corpus, "train", number)
        assert audio is None and record["task"] == "text" and 0.1 < record["duration"] < 12
        names = {part for name in (*record.get("entities", ()),
                                   *record.get("meta", {}).get("sounds_like", ()))
                 for part in name.split()}
        written, said = record["text"].split(), record["spoken"].split()
        assert written[0] == said[0] in vocabulary(record["language"])
        assert 1 < len(said) < 6  # two or three, names of up to two parts
        assert all(a == b if a in vocabulary(record["language"]) else {a, b} <= names
                   for a, b in zip(written, said, strict=True))
        held.add((record["language"], bool(names)))
    assert held == {("English", True), ("English", False), ("Korean", False)}
    assert "entities" not in make_sample(Corpus(text_share=1.0), "train", 0)[1]
    plain = [make_sample(Corpus(), "train", n)[1] for n in range(30)]
    mixed = [make_sample(Corpus(text_share=0.3), "train", n)[1] for n in range(30)]
    assert 2 < sum(record["task"] == "text" for record in mixed) < 20
    assert all(a == b for a, b in zip(plain, mixed, strict=True) if b["task"] == "asr")


def test_a_name_of_all_its_parts_is_in_one_split_however_it_is_spelled():
    corpus = Corpus(entity_share=1.0)
    names = {split: {name for record, _ in samples(corpus, split, 60)
                     for name in (*record["entities"], *record["meta"]["sounds_like"])
                     if " " in name or (record["language"] == "Chinese" and len(name) == 3)}
             for split in SPLITS}
    assert all(names.values())
    assert not names["train"] & names["test"] and not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]


def test_every_kind_of_sound_comes_and_babble_is_loud_all_along():
    made = samples(Corpus(sound_share=1.0), "train", 150)
    assert {record["meta"]["sound"] for record, _ in made} == {*KINDS, "babble"}
    for record, waveform in made:
        if record["meta"]["sound"] == "babble":
            parts = np.array_split(waveform, 5)
            assert min(np.sqrt(np.mean(part ** 2)) for part in parts) > 0.02


def test_samples_of_several_sentences():
    made = samples(Corpus(sentences=(1, 4)), "train", 60)
    per_second = [len(record["words"]) / record["duration"] for record, _ in made]
    durations = [record["duration"] for record, _ in made]
    assert max(durations) > 4 > 1.6 > min(durations) and max(per_second) < 8
    assert {record["meta"]["speakers"] for record, _ in made} == {1}
    assert all(list(map(tuple, record["words"])) == sorted(map(tuple, record["words"]),
                                                           key=lambda word: word[1])
               for record, _ in made)


def test_other_samples_stay_as_they_are():
    plain, mixed = Corpus(), Corpus(sound_share=0.3)
    for number in range(20):
        key, record, audio = make_sample(mixed, "train", number)
        if record["task"] == "asr":
            assert (key, record, audio) == make_sample(plain, "train", number)


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_are_finite_of_the_length_asked_for_and_repeatable(kind):
    for seed in range(20):
        waveform = make_sound(kind, 0.6 + 0.1 * seed, np.random.default_rng(seed))
        assert waveform.dtype == np.float32 and len(waveform) == int((0.6 + 0.1 * seed) * 16_000)
        assert np.isfinite(waveform).all() and np.abs(waveform).max() <= 0.7
        assert (np.abs(waveform).max() > 0.03) == (kind != "silence")
        again = make_sound(kind, 0.6 + 0.1 * seed, np.random.default_rng(seed))
        assert np.array_equal(waveform, again)


@pytest.mark.parametrize("name", ["sentences", "text_words"])
@pytest.mark.parametrize("lengths", [(0, 2), (3, 2)])
def test_lengths_that_are_none_are_refused(name, lengths):
    with pytest.raises(UserError, match=f"data.corpus.{name}="):
        Corpus(**{name: lengths})


def test_shares_beyond_one_are_refused():
    with pytest.raises(UserError, match="sound_share"):
        Corpus(sound_share=0.6, conversation_share=0.6)


def test_joined_samples_are_the_clips_of_the_corpus_without_joins():
    single = Corpus(languages=("English", "Chinese"), test_samples=6, pause_seconds=(0.3, 0.8))
    joined = replace(single, joined_clips=3, test_samples=2)
    for number, language in enumerate(single.languages):
        clips = [make_sample(single, "test", n) for n in range(number, 6, 2)]
        key, record, audio = make_sample(joined, "test", number)
        assert (key, record["language"]) == (f"test-{number:06d}", language)
        assert record["text"] == join_texts([clip["text"] for _, clip, _ in clips])
        waveform, words = decode(audio), iter(record["words"])
        for _, clip, sound in clips:
            sound, ours = decode(sound), [next(words) for _ in clip["words"]]
            assert [word[0] for word in ours] == [word[0] for word in clip["words"]]
            begin = round((ours[0][1] - clip["words"][0][1]) * 16_000)  # times are rounded
            assert any(np.allclose(waveform[b:b + len(sound)], sound, atol=1e-4)
                       for b in range(max(0, begin - 3), begin + 4))
        assert not list(words)
    with pytest.raises(UserError, match="joined_clips"):
        Corpus(joined_clips=0)
