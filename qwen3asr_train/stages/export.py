"""Export: a trained model in the layout that PyPI's qwen-asr reads."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aligner, asr, original

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Write ``stage.out``; there is no run folder."""
    stage, out = config.stage, Path(str(config.stage.out))
    if stage.dtype not in DTYPES:
        raise UserError(f"stage.dtype={stage.dtype}: one of {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there already; name a new folder")
    folder = str(stage.init_from)
    kind = aligner if aligner.is_aligner(folder) else asr
    model, processor = kind.load(folder, config.model.attn_implementation)
    if model.config.token_classification_bias:
        raise UserError(f"init_from={folder}: its head has a bias, for which that layout has no "
                        "place")
    original.save(model, processor, out, DTYPES[stage.dtype])
    print(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
          f"{stage.dtype}")
    return {}
