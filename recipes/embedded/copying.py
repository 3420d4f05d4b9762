"""Does a recogniser copy the spelling of names from its context?

    python recipes/embedded/copying.py RUN/model [--clips 200] [--audio]

Embedded test sentences, every one with a name that can be spelled in several ways, in five
languages: with words in place of audio as in experiment=embedded_text, with `--audio` as speech.
Printed is the share of tokens that are the likeliest after the right ones before them, of names and
of everything else, for contexts with nothing, with the names that are said and others up to a
length, and with others alone.
"""

import argparse
from pathlib import Path

import torch
from omegaconf import OmegaConf

from data_prep.embedded import Corpus, make_sample
from data_prep.sentences import named_languages
from qwen3asr_train.data import features
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.collate import IGNORE, Example, collate
from qwen3asr_train.data.context import Context, ContextBuilder, EntityTable
from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.models import asr

EXPERIMENT = Path(__file__).parents[2] / "configs/experiment/embedded_eight.yaml"
LENGTHS = (1, 4, 12)  # of the lists
BATCH = 25
FORMAT = {"formats": ("Names: {list}",), "separators": (", ",), "rare_share": 0.0}


def conditions() -> dict[str, Context]:
    """What stands in the context."""
    lists = {f"{length} listed": Context(entities=1.0, list_length=(length, length), **FORMAT)
             for length in LENGTHS}
    others = Context(distractors=1.0, list_length=(LENGTHS[-1],) * 2, **FORMAT)
    return {"no context": Context(), **lists, f"{LENGTHS[-1]} others": others}


def is_name(prompts: PromptBuilder, record: dict, target: list[int]) -> list[bool]:
    """For each token of an answer whether it is of a name."""
    places = set()
    for name in record["entities"]:
        for spelled in (f" {name}", name):
            wanted = prompts.answer(spelled)[:-1]
            for start in range(len(target) - len(wanted) + 1):
                if target[start:start + len(wanted)] == wanted:
                    places.update(range(start, start + len(wanted)))
    return [place in places for place in range(len(target))]


@torch.inference_mode()
def right_tokens(model: asr.Recogniser, examples: list[Example], pad_id: int) -> list[list[bool]]:
    """For each example which tokens of its target are the likeliest ones."""
    batch = collate(examples, pad_id)
    hidden = model.model.language_model(
        inputs_embeds=model.embed(batch["input_ids"], model.encode_audio(batch)), use_cache=False
    ).last_hidden_state
    found = model.lm_head(hidden[:, :-1]).argmax(-1)
    labels = batch["labels"][:, 1:]
    return [(row == label)[label != IGNORE].tolist()
            for row, label in zip(found, labels, strict=True)]


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="RUN/model")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--audio", action="store_true", help="speech, not words in place of it")
    options = parser.parse_args()
    model, processor = asr.load(options.model)
    model.eval()
    prompts = PromptBuilder(processor.tokenizer)
    # what recipes/embedded trains on
    domains = tuple(OmegaConf.load(EXPERIMENT).data.corpus.domains)
    corpus = Corpus(languages=named_languages(), domains=domains, entity_share=1.0,
                    text_share=0.0 if options.audio else 1.0)
    samples = [sample for number in range(options.clips)
               if (sample := make_sample(corpus, "test", number))[1].get("entities")]
    records = [record for _, record, _ in samples]
    clips = [payload and features.log_mel(decode(payload, name=key)) for key, _, payload in samples]
    table = EntityTable([(r["text"], r["entities"]) for r in records], rare_share=0.0)
    print(f"{len(records)} sentences{'':<10} names  other tokens")
    for title, context in conditions().items():
        builder = ContextBuilder(context, table, [])
        examples, kinds = [], []
        for number, (record, mel) in enumerate(zip(records, clips, strict=True)):
            text = builder.draw(record, sample_rng(0, 0, f"{title}/{number}")).text
            prompt = prompts.written_prompt(record["spoken"], text) if mel is None else \
                prompts.prompt(features.audio_tokens(len(mel)), text)
            target = prompts.target(record["text"], record["language"])
            examples.append(Example(torch.zeros(0, features.MEL_BINS) if mel is None else mel,
                                    prompt, target))
            kinds.append(is_name(prompts, record, target))
        right = [row for start in range(0, len(examples), BATCH)
                 for row in right_tokens(model, examples[start:start + BATCH], prompts.pad_id)]
        pairs = [pair for row, kind in zip(right, kinds, strict=True)
                 for pair in zip(row, kind, strict=True)]
        shares = [sum(ok for ok, name in pairs if name == of) / sum(name == of for _, name in pairs)
                  for of in (True, False)]
        print(f"{title:<24} {shares[0]:>5.3f}  {shares[1]:>5.3f}")


if __name__ == "__main__":
    main()
