"""Positions of mixed sequences against transformers' index function of Qwen3-Omni."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoePreTrainedModelForConditionalGeneration as Reference,
)

from qwen3asr_train.data.features import audio_tokens
from qwen3asr_train.data.positions import Audio, Film, Text, Vision, position_ids, sound_places

TEXT, IMAGE, VIDEO, AUDIO, SEEN, SEEN_END, HEARD, HEARD_END = range(8)
SECONDS = 0.5  # between two steps of a film: exact in binary, so that ties are ties


def theirs(ids, frames, images, videos, with_sound):
    """``(3, length)`` of transformers; ``frames`` (mel) of each clip, grids in patches."""
    config = SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
        vision_start_token_id=SEEN, audio_start_token_id=HEARD, position_id_per_seconds=12.5,
        audio_config=SimpleNamespace(n_window=50))
    model = SimpleNamespace(config=config, spatial_merge_size=2)
    model.get_llm_pos_ids_for_vision = Reference.get_llm_pos_ids_for_vision.__get__(model)
    ids = torch.tensor([ids])
    return Reference.get_rope_index(
        model, ids, torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None, torch.ones_like(ids), with_sound,
        torch.tensor(frames), torch.full((len(videos),), SECONDS))[0][:, 0]


grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
pictures = st.tuples(st.just("image"), grids)
clips = st.tuples(st.just("audio"), st.integers(1, 430))
words = st.tuples(st.just("text"), st.integers(1, 6))
films = st.tuples(st.just("video"), grids, st.integers(1, 5))
sounding = st.tuples(st.just("film"), grids, st.integers(1, 5), st.integers(1, 430))


def sequence(kinds):
    ids, parts, frames, images, videos = [], [], [], [], []
    for kind, *sizes in kinds:
        if kind == "text":
            ids += [TEXT] * sizes[0]
            parts.append(Text(sizes[0]))
            continue
        steps = sizes[1] if kind in ("video", "film") else 1
        if kind == "audio":
            count = audio_tokens(sizes[0])
            middle, inside, edges = [AUDIO] * count, Audio(count), ([HEARD], [HEARD_END])
            frames.append(sizes[0])
        else:
            rows, columns = sizes[0]
            inside = Vision(rows, columns, tuple(SECONDS * t for t in range(steps)))
            middle = [IMAGE if kind == "image" else VIDEO] * (steps * rows * columns)
            edges = [SEEN], [SEEN_END]
            (images if kind == "image" else videos).append([steps, 2 * rows, 2 * columns])
            if kind == "film":
                inside = Film(inside, audio_tokens(sizes[2]))
                middle = [AUDIO if heard else VIDEO for heard in sound_places(inside).tolist()]
                edges = [SEEN, HEARD], [HEARD_END, SEEN_END]
                frames.append(sizes[2])
        ids += edges[0] + middle + edges[1]
        parts += [Text(len(edges[0])), inside, Text(len(edges[1]))]
    return ids, parts, frames, images, videos


@given(st.lists(st.one_of(pictures, clips, words, films), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_mixed_sequences_are_transformers(kinds):
    ids, parts, frames, images, videos = sequence(kinds)
    found = position_ids(parts)
    assert found[0].tolist() == list(range(len(ids)))
    if images or videos:
        torch.testing.assert_close(found[1:], theirs(ids, frames, images, videos, False))
    else:
        assert all(torch.equal(axis, found[0]) for axis in found)


@given(st.lists(st.one_of(words, sounding, pictures), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_film_with_sound_is_transformers(kinds):
    ids, parts, frames, images, videos = sequence(kinds)
    if videos:
        torch.testing.assert_close(position_ids(parts)[1:],
                                   theirs(ids, frames, images, videos, True))


def test_a_picture_and_what_follows():
    found = position_ids([Text(2), Vision(2, 3), Text(1)])
    assert found[1].tolist() == [0, 1] + [2] * 6 + [5]
    assert found[2].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5]
    assert found[3].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5]


@pytest.mark.parametrize("rate", [12.5, 25.0])
def test_frames_by_their_time(rate):
    found = position_ids([Vision(1, 1, (0.0, 0.08, 2.0))], rate)
    assert found[1].tolist() == pytest.approx([0.0, 0.08 * rate, 2.0 * rate])
