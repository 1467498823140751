"""How the tests and the vectors reach what a run executes: scripted answers, and tables as episodes of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.modeling_outputs import CausalLMOutput

from gptlife.data.config import decode
from gptlife.data.tokens import Encoded
from gptlife.stages import ppo
from gptlife.stages.generation.sampler import Answer, sample
from gptlife.stages.rl import episodes, metrics

CPU = torch.device("cpu")


def lists(*tensors: Tensor) -> list[Any]:
    """Tensors as the oracles read them."""
    return [tensor.tolist() for tensor in tensors]


class Scripted(nn.Module):
    """A language model that says given rows, one after the prompt of each length `width * row + 1`."""

    def __init__(self, rows: Sequence[Sequence[int]], vocabulary: int = 20) -> None:
        super().__init__()
        self.config = AutoConfig.for_model("gpt2", vocab_size=vocabulary, n_embd=4, n_layer=1, n_head=1)
        self.width = max(map(len, rows))
        logits = torch.zeros(len(rows) * self.width, vocabulary)
        for row, tokens in enumerate(rows):
            for step, token in enumerate(tokens):
                logits[row * self.width + step, token] = 50.0
        self.logits = nn.Parameter(logits)

    def prompts(self) -> list[Encoded]:
        """The prompts that ask for the rows: their lengths tell them apart."""
        return [Encoded.prompt([3] * (start + 1)) for start in range(0, len(self.logits), self.width)]

    def forward(self, position_ids: Tensor, **_: Any) -> CausalLMOutput:
        """What comes after each position."""
        return CausalLMOutput(logits=self.logits[position_ids])


def scripted_answers(rows: Sequence[Sequence[int]], eos: int) -> tuple[list[Encoded], list[Answer]]:
    """(prompts, what the sampler makes of a model that would say `rows`): it stops at the end-of-text."""
    model = Scripted(rows)
    prompts = model.prompts()
    return prompts, sample(model, prompts, max_new_tokens=model.width, temperature=1.0, eos=eos, seed="", greedy=True)


def as_rollouts(prompts: list[Encoded], answers: Sequence[Answer], longest: int) -> episodes.Rollouts:
    """Sampled answers as a step's episodes."""
    return episodes.share_answers(Accelerator(cpu=True), prompts, range(len(prompts)), answers, longest)


def scripted_rollouts(rows: Sequence[Sequence[int]], eos: int) -> episodes.Rollouts:
    """A step's episodes, sampled from a model that would say `rows`."""
    prompts, answers = scripted_answers(rows, eos)
    return as_rollouts(prompts, answers, len(rows[0]))


def rollouts_of(mask_BR: Tensor) -> episodes.Rollouts:
    """Episodes of given lengths; prompts of two tokens, all answers ended."""
    responses = [[5] * n for n in mask_BR.sum(1).tolist()]
    ended_B = torch.ones(len(mask_BR), dtype=torch.bool)
    return episodes.Rollouts(
        [Encoded.prompt([3, 4])] * len(mask_BR), responses, ended_B, torch.zeros(mask_BR.shape), mask_BR
    )


def readings_of(mask_BR: Tensor, **tables: Tensor) -> episodes.Readings:
    """What the models said; 0 where it isn't given."""
    zeros = torch.zeros(mask_BR.shape, dtype=torch.float64)
    names = ("logprobs_BR", "ref_logprobs_BR", "values_BR", "entropy_BR")
    return episodes.Readings(**{"scores_B": zeros[:, 0], **dict.fromkeys(names, zeros), **tables})


def experience_of(mask_BR: Tensor, **tables: Tensor) -> episodes.Experience:
    """What an update learns from; 0 where it isn't given."""
    zeros = torch.zeros(mask_BR.shape, dtype=torch.float64)
    learnt = {name: tables.pop(name, zeros) for name in ("rewards_BR", "values_BR", "advantages_BR", "returns_BR")}
    return episodes.Experience(readings_of(mask_BR, **tables), **learnt)


def minibatch(mask_BR: Tensor, rows: Sequence[int] | None = None, **tables: Tensor) -> episodes.Minibatch:
    """Some episodes (all by default) as a loss reads them."""
    rows = range(len(mask_BR)) if rows is None else rows
    return episodes.minibatch_of(rollouts_of(mask_BR), experience_of(mask_BR, **tables), rows, CPU)


def algorithm(**fields: Any) -> ppo.PPO:
    """PPO with some fields changed."""
    return ppo.PPO(decode(ppo.PPOConfig, {"prompts": "x", **fields}, "ppo"))


def denominator(mask_BR: Tensor, rows: Sequence[int] | None = None) -> float:
    """What PPO divides a minibatch's loss by."""
    rows = range(len(mask_BR)) if rows is None else rows
    return algorithm().denominator(rollouts_of(mask_BR), experience_of(mask_BR), rows)


def logged(mask_BR: Tensor, **tables: Tensor) -> dict[str, Any]:
    """What a step logs of its episodes."""
    return metrics.episode_metrics(rollouts_of(mask_BR), experience_of(mask_BR, **tables), 0.1, 1)
