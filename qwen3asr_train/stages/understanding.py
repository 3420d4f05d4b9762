"""Audio understanding: how many questions about the test set's audio are answered right."""

from collections import Counter

from omegaconf import DictConfig, OmegaConf
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.dataset import SpeechDataset, loader
from qwen3asr_train.data.plan import evaluation_cells
from qwen3asr_train.data.questions import Questions
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.decoding.generate import Model, autocast, generate, prompts_for
from qwen3asr_train.runtime.progress import show_progress
from qwen3asr_train.runtime.strategies import rank_and_size
from qwen3asr_train.stages.scoring import gather_lists, scoring_device


def score_questions(model: Model, processor: Qwen3ASRProcessor, entries: list[Entry],
                    config: DictConfig) -> dict[str, float]:
    """``test/question_accuracy`` over all questions and by field; empty without questions.

    Each sample that can answer one is asked one of ``stage.questions.ways``, drawn by the seed. An
    answer counts if it is the expected one to the letter.
    """
    ways = OmegaConf.to_container(config.stage.questions.ways)
    if not config.stage.questions.share or not ways:
        return {}
    fields = {question: field for field, asked in ways.items() for question in asked}
    device, (rank, ranks) = scoring_device(config), rank_and_size()
    model = model.to(device).eval()
    dataset = SpeechDataset(prompts_for(model, processor.tokenizer), seed=config.seed,
                            questions=Questions(1.0, ways), with_prompts=True)
    cells = evaluation_cells(entries, config.data.evaluation_seconds, rank, ranks)
    batches = loader(dataset, cells, config.data.workers)
    answers: list[tuple[str, bool]] = []
    for batch in show_progress(batches, "scoring, questions", len(cells), rank):
        questions = batch["meta"]["questions"]
        inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
        with autocast(device):
            generated = generate(model, inputs, config.stage.decoding.max_new_tokens)
        for asked, found in zip(questions, generated, strict=False):  # a blank has no question
            if asked is not None:
                text = processor.tokenizer.decode(found.tokens).strip()
                answers.append((fields.get(asked[0], "other"), text == asked[1].strip()))
    answers = gather_lists(answers)
    if not answers:
        return {}
    asked_of, right_of = Counter(field for field, _ in answers), Counter(
        field for field, right in answers if right)
    return {"test/question_accuracy": sum(right_of.values()) / len(answers)} | {
        f"test/question_accuracy/{field}": right_of[field] / count
        for field, count in sorted(asked_of.items())}
