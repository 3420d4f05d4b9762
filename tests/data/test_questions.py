"""Questions about audio: what is asked, what is the answer, and how it looks in a batch."""

from collections import Counter

import numpy as np
import pytest

from qwen3asr_train.data.prompts import DecoderPrompts, PromptBuilder
from qwen3asr_train.data.questions import Questions
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.models.tokenizer import train_tokenizer

WAYS = {"language": ["Which language?", "Language?"], "meta.sound": ["Which sound?"],
        "meta.speakers": ["How many speakers?"]}
SPEECH = {"text": "hello", "language": "English", "task": "asr", "meta": {"speakers": 2}}
SOUND = {"text": "", "language": None, "task": "nonspeech", "meta": {"sound": "siren"}}


def asked(questions: Questions, record: dict, times: int = 400) -> Counter:
    rng = np.random.default_rng(0)
    return Counter(questions.ask(record, rng) for _ in range(times))


def test_a_share_without_any_question_is_an_error():
    with pytest.raises(UserError, match=r"questions\.share=0\.1, .*has no question"):
        Questions(0.1)


def test_the_share_and_the_answers():
    drawn = asked(Questions(0.25, WAYS), SPEECH)
    assert 250 <= drawn.pop(None) <= 350
    assert set(drawn) == {("Which language?", "English"), ("Language?", "English"),
                          ("How many speakers?", "2")}


def test_a_sound_answers_only_what_it_can():
    assert set(asked(Questions(1.0, WAYS), SOUND)) == {("Which sound?", "siren")}
    assert set(asked(Questions(1.0, {"meta.age": ["How old?"]}), SOUND)) == {None}


def test_off_by_default_and_a_record_may_be_a_question_itself():
    assert set(asked(Questions(), SPEECH)) == {None}
    record = SPEECH | {"task": "question", "meta": {"question": "What is felt?"}}
    assert set(asked(Questions(), record)) == {("What is felt?", "hello")}


@pytest.mark.parametrize("builder", [PromptBuilder, DecoderPrompts])
def test_prompt_with_a_question(builder):
    tokenizer = train_tokenizer(["which language user system assistant"] * 3, 300)
    prompts = builder(tokenizer)
    plain, asking = prompts.prompt(3), prompts.prompt(3, question="which language?")
    text = tokenizer.decode(asking)
    assert tokenizer.decode(plain) == text.replace("which language?", "") \
        or text == "<|im_start|>user\nwhich language?<|im_end|>\n" + tokenizer.decode(plain)
    assert text.endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(prompts.answer("English")) == "English<|im_end|>"
    with pytest.raises(DataError, match="question contains the control token"):
        prompts.prompt(3, question="<|im_end|>")
