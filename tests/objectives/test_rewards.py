"""What each reward is for, and what becomes of a user's reward that goes wrong."""

import math

import jiwer
import pytest

from qwen3asr_train.errors import UserError
from qwen3asr_train.objectives.rewards import REWARDS, RewardSum

SAID = "please open the old red door"


def columns(count: int, **changes) -> dict[str, list]:
    row = {"text": SAID, "language": "English", "task": "asr", "entities": [], "listed": [],
           "context": "", "duration": 2.0, "english_normaliser": "basic"} | changes
    return {name: [value] * count for name, value in row.items()}


def rewards(name: str, *texts: str, **changes) -> list[float]:
    return list(REWARDS[name](prompts=[""] * len(texts), completions=list(texts),
                              completion_ids=[[]] * len(texts), **columns(len(texts), **changes)))


def answer(text: str, language: str = "English") -> str:
    return f"language {language}<asr_text>{text}<|im_end|>"


def test_error_rate_is_jiwers_and_bounded():
    texts = [SAID, "open the old red door", "please open an old door", "a b c d e f g h i", ""]
    expected = [-min(1.0, jiwer.wer(SAID, text)) for text in texts]
    assert rewards("error_rate", *map(answer, texts)) == pytest.approx(expected)
    assert rewards("error_rate", answer("开门"), text="开了门", language="Chinese") == \
        pytest.approx([-1 / 3])
    assert rewards("error_rate", answer("", "None"), answer("hum hum", "None"), text="",
                   language=None) == [0, -1]


def test_format():
    assert rewards("format", answer("a b"), answer("", "None"), answer("a b")[:-10],
                   "a b<|im_end|>", answer("a<asr_text>b"), answer("a<|im_end|>b"),
                   answer("x", "the words")) == [1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("text", ["if a < b then", "a<b", "a <| b", ""])
@pytest.mark.parametrize("language", ["English", "Chinese,English", "Hong Kong Cantonese"])
def test_what_may_be_written_is_in_format(text, language):
    assert rewards("format", answer(text, language), answer(f"{text}<asr_text>", language),
                   answer(f"<|audio_pad|>{text}", language),
                   answer(text, f"{language},")) == [1, 0, 0, 0]


def test_language_of_code_switching_is_any_of_its_own():
    assert rewards("language", answer("a", "Chinese,English"), answer("a", "English"),
                   answer("a", "French,English"), "a<|im_end|>", language="English,Chinese"
                   ) == [1, 1, 0, 0]


def test_language():
    assert rewards("language", "<|im_end|>", text="", language=None) == [0]
    assert rewards("language", answer("a"), answer("a", "German"), "a") == [1, 0, 0]
    assert rewards("language", answer("", "None"), answer("a"), text="", language=None) == [1, 0]


def test_repetition_and_overrun():
    loop = "open the door now " * 10
    assert rewards("repetition", answer(SAID), answer(loop)) == [0, pytest.approx(-33 / 37)]
    assert rewards("repetition", answer(loop), text=loop) == [0]  # as it was said
    assert rewards("overrun", answer(SAID), answer("open"), answer(f"{SAID} {SAID}"),
                   answer(f"{SAID} " * 9)) == [0, 0, -0.5, -1]
    assert rewards("overrun", answer("a b c"), text="", language=None) == [0]


def test_silence():
    assert rewards("silence", answer("", "None"), answer("a"), answer(""), text="",
                   language=None) == [1, 0, 0]
    assert rewards("silence", answer("", "None"), answer(SAID)) == [0, 0]
    assert rewards("silence", "<|im_end|>", answer("", "English"), text="", language=None
                   ) == [0, 0]


def test_entities_and_recital():
    listed = {"listed": ["Saraph", "Fiona"], "text": "call Saraph today"}
    texts = [answer("call Saraph today"), answer("call Seraph today"), answer("call Fiona today")]
    assert rewards("entities", *texts, **listed) == [1, 0, 0]
    assert rewards("recital", *texts, **listed) == [0, 0, -1]


def test_sum_and_parts():
    total = RewardSum.of({"error_rate": 2.0, "format": 0.5, "silence": 0.0})
    texts = [answer(SAID), answer("please open the door"), "x"]
    parts, sums, problems = total([""] * 3, texts, [[]] * 3, columns(3))
    assert set(parts) == {"error_rate", "format"} and not problems
    assert sums == pytest.approx([0.5, 0.5 - 2 * 2 / 6, -2.0])


def trl_style(completions, **kwargs):
    return [float(len(set(text))) for text in completions]


def raises(completions, **kwargs):
    raise RuntimeError("no server")


def returns_none(completions, **kwargs):
    return [1.0, None, *[math.nan] * (len(completions) - 2)]


def returns_too_few(completions, **kwargs):
    return [1.0]


def test_a_users_reward_is_named_by_its_module():
    total = RewardSum.of({}, [f"{__name__}:trl_style*0.5"])
    parts, sums, _ = total([""], ["abc"], [[]], columns(1))
    assert parts == {f"{__name__}:trl_style": [3.0]} and sums == [1.5]


@pytest.mark.parametrize("function, message, bad", [
    ("raises", "raised RuntimeError: no server", [0, 1, 2]),
    ("returns_none", "returned None for 2 of 3 answers", [1, 2]),
    ("returns_too_few", "returned 1 rewards for 3 answers", [0, 1, 2])])
def test_a_bad_reward_is_told_and_never_a_number(function, message, bad):
    name = f"{__name__}:{function}"
    _, sums, problems = RewardSum.of({"format": 1.0}, [name])(
        [""] * 3, ["a", "b", "c"], [[]] * 3, columns(3))
    assert len(problems) == 1 and name in problems[0] and message in problems[0]
    assert [i for i, value in enumerate(sums) if math.isnan(value)] == bad


@pytest.mark.parametrize("name, message", [
    ("wer", "'wer' is no module:function"), ("nowhere:f", "No module named 'nowhere'"),
    ("math:nothing", "nothing"), ("math:sqrt*high", "no weight 'high'")])
def test_rewards_that_there_are_not(name, message):
    with pytest.raises(UserError, match=message):
        RewardSum.of({}, [name])


def test_no_reward_at_all():
    with pytest.raises(UserError, match="no reward has a weight"):
        RewardSum.of({"format": 0.0})
