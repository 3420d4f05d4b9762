"""The policy losses against TRL's own, and log-probabilities against torch's in float64."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.grpo_trainer import GRPOTrainer

from qwen3asr_train.errors import UserError
from qwen3asr_train.objectives.gspo import Objective, group_advantages, normaliser, policy_loss
from qwen3asr_train.objectives.log_probs import chunked_log_probs


class TrlLoss(GRPOTrainer):
    """TRL's loss of given log-probabilities: its method, without a model or a data set."""

    def __init__(self, *, level, loss_type, low, high, beta, max_length):
        self.importance_sampling_level, self.loss_type, self.beta = level, loss_type, beta
        self.epsilon_low, self.epsilon_high = low, high
        self.max_completion_length = max_length
        self.top_entropy_quantile, self.off_policy_mask_threshold = 1.0, None
        self.use_vllm = self._entropy_bonus_enabled = self.aux_loss_enabled = False
        self.args = SimpleNamespace(delta=None, use_bias_correction_kl=False,
                                    steps_per_generation=1)
        self.current_gradient_accumulation_steps = 1
        self._metrics = {"train": defaultdict(list)}
        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x,
                                           num_processes=1)

    def _get_per_token_logps_and_entropies(self, model, *_, **__):
        return model, torch.zeros_like(model), None

    def loss(self, log_probs, old, advantages, mask, reference):
        sequences = len(mask)
        return self._compute_loss(log_probs, {
            "prompt_ids": torch.zeros(sequences, 1, dtype=torch.long),
            "prompt_mask": torch.ones(sequences, 1, dtype=torch.long),
            "completion_ids": torch.zeros_like(mask), "completion_mask": mask,
            "advantages": advantages, "old_per_token_logps": old,
            "ref_per_token_logps": reference, "num_items_in_batch": mask.sum()})


def drawn(seed: int, spread: float = 1e-3):
    generator = torch.Generator().manual_seed(seed)
    sequences, longest = 12, 9
    lengths = torch.randint(1, longest + 1, (sequences,), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    log_probs = -3 * torch.rand(sequences, longest, generator=generator, dtype=torch.float64)
    old, reference = (log_probs + spread * torch.randn(log_probs.shape, generator=generator,
                                                       dtype=torch.float64) for _ in range(2))
    return log_probs, old, torch.randn(sequences, generator=generator, dtype=torch.float64), mask, \
        reference


@pytest.mark.parametrize("level, average, theirs", [
    ("sequence", "sequence", "grpo"), ("token", "sequence", "grpo"), ("token", "token", "dapo"),
    ("token", "length", "dr_grpo")])
@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.28)])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_trl(level, average, theirs, kl, clip, seed):
    log_probs, old, advantages, mask, reference = drawn(seed, 1e-3 if clip[0] < 0.1 else 0.6)
    objective = Objective(level, *clip, average=average, kl=kl)
    ours, expected = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    found = policy_loss(objective, ours, old, advantages, mask, reference if kl else None,
                        max_tokens=20)
    (found.total / normaliser(objective, mask.sum(1).tolist())).backward()
    trl = TrlLoss(level=level, loss_type=theirs, low=clip[0], high=clip[1], beta=kl, max_length=20)
    loss = trl.loss(expected, old, advantages, mask, reference)
    loss.backward()
    torch.testing.assert_close(found.total.detach() / normaliser(objective, mask.sum(1).tolist()),
                               loss.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-6, atol=1e-9)
    assert 0 < found.clipped.mean() < 1
    if average != "token":
        share = trl._metrics["train"]["clip_ratio/region_mean"][0]
        if level == "sequence":
            assert float(found.clipped.mean()) == pytest.approx(share, abs=1e-6)


def test_gspo_token_has_the_value_of_gspo_and_its_gradient_where_advantages_are_alike():
    log_probs, old, advantages, mask, _ = drawn(5, 1e-4)
    results = []
    for level in ("sequence", "sequence_token"):
        leaf = log_probs.clone().requires_grad_()
        found = policy_loss(Objective(level, 0.2, 0.2), leaf, old, advantages, mask)
        found.total.backward()
        results.append((found.total.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_equal_trl(scale):
    rewards = torch.tensor([[1.0, 0.5, 0.0, 0.5], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    found = group_advantages(rewards, scale)
    for row, expected in zip(rewards, found, strict=True):
        centred = row - row.mean()
        # trl/trainer/grpo_trainer.py, scale_rewards "group" and "none"
        torch.testing.assert_close(expected,
                                   centred / (row.std() + 1e-4) if scale == "group" else centred)
    assert found[1].abs().max() == 0


def test_unknown_choices_are_refused():
    with pytest.raises(UserError, match="level='word'"):
        Objective("word")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(2, 50), st.integers(1, 40),
       st.sampled_from([0.7, 1.0, 1.5, None]))
def test_log_probs_equal_torch(positions, vocabulary, chunk, temperature):
    if temperature is None:  # each its own
        temperature = torch.linspace(0.7, 1.5, positions, dtype=torch.float64)
    generator = torch.Generator().manual_seed(positions * 100 + vocabulary)
    hidden = torch.randn(positions, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, 8, generator=generator, dtype=torch.float64)
    upstream = torch.randn(positions, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, hidden, weight)]
    ours, entropy = chunked_log_probs(leaves[0], leaves[1], targets, chunk, temperature)
    everything = (leaves[2] @ leaves[3].T / torch.as_tensor(temperature)[..., None]).log_softmax(-1)
    theirs = everything.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=everything).entropy()
                               .detach())
    (ours * upstream).sum().backward()
    (theirs * upstream).sum().backward()
    for ours, theirs in ((leaves[0], leaves[2]), (leaves[1], leaves[3])):
        torch.testing.assert_close(ours.grad, theirs.grad)
