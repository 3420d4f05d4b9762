"""Parts of the omni model from released checkpoints: a Qwen3-VL's vision tower, a Qwen3.

Qwen3-Omni's pretraining begins so (its report, section 4.1): language model from Qwen3, vision
encoder from Qwen3-VL, audio encoder from AuT (:func:`qwen3asr_train.models.aut.load_encoder`).
"""

from transformers import AutoConfig, AutoTokenizer, Qwen3ASRProcessor, Qwen3ForCausalLM
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from qwen3asr_train.errors import UserError
from qwen3asr_train.models.folder import load_whole, opening
from qwen3asr_train.models.tokenizer import AUDIO_TOKENS, complete, make_processor

WITH_TOWER = ("qwen3_vl", "qwen3_vl_moe")
"""Kinds of checkpoints whose vision tower this is."""


def load_vision_tower(folder: str, width: int, attn_implementation: str = "sdpa"
                      ) -> Qwen3VLVisionModel:
    """The tower (float32) of a Qwen3-VL checkpoint folder or hub name, its mergers included.

    UserError for another kind of checkpoint, for one that lacks some of the weights, and for a
    tower whose output is not ``width`` wide, as the language model is.
    """
    with opening(folder, field="vision_from"):
        config = AutoConfig.from_pretrained(folder)
        if config.model_type not in WITH_TOWER:
            raise UserError(f"vision_from={folder}: a {config.model_type}, not a Qwen3-VL")
        vision = config.vision_config
        if vision.out_hidden_size != width:
            raise UserError(f"vision_from={folder}: its tower's output is {vision.out_hidden_size} "
                            f"wide, the language model is {width} wide")
        # named here, as those of Qwen3-VL with experts have a class of their own
        vision = Qwen3VLVisionModel.config_class(**{
            name: value for name, value in vision.to_dict().items() if name != "model_type"})
        return load_whole(
            Qwen3VLVisionModel, folder, "vision_from", config=vision,
            attn_implementation=attn_implementation, key_mapping={r"^model\.visual\.": ""})


def load_language_model(folder: str, attn_implementation: str = "sdpa"
                        ) -> tuple[Qwen3ForCausalLM, Qwen3ASRProcessor]:
    """A plain Qwen3 (float32) from a checkpoint folder or hub name, and a processor around its
    tokenizer with the tokens that it lacks; embeddings without a row for these grow by new ones.

    UserError for another kind of checkpoint and for one that lacks some of the weights.
    """
    with opening(folder, field="language_model_from"):
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "qwen3":
            raise UserError(f"language_model_from={folder}: a {kind}, not a Qwen3")
        tokenizer = complete(AutoTokenizer.from_pretrained(folder, **AUDIO_TOKENS))
        model = load_whole(Qwen3ForCausalLM, folder, "language_model_from",
                           attn_implementation=attn_implementation)
    return model, make_processor(tokenizer)
