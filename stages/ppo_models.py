"""PPO's models: policy, reference, value network, reward; with their optimizers, checkpoints and averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gptlife.data.config import UserError
from gptlife.data.tokens import tokenizer_hash
from gptlife.reward.reading import SelectedLogits, SelectedScores
from gptlife.stages import models
from gptlife.stages.checkpoints import Checkpoints
from gptlife.stages.training import adamw

if TYPE_CHECKING:
    from gptlife.stages.ppo import PPOConfig


class Average:
    """Exponential moving average of a model's trainable weights (Ouyang et al. 2022, C.4: decay .992 a step)."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach().float(), 1.0 - self.decay)

    @torch.no_grad()
    def copied_into(self, model: Any) -> Any:
        """A copy of `model` with the averaged weights."""
        twin = copy.deepcopy(model)
        for name, parameter in twin.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name])
        return twin

    def state_dict(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """From the checkpoint."""
        for name, tensor in state.items():
            self.weights[name].copy_(tensor)


class Players:
    """Everything with weights. `policy` and `value` are the prepared (possibly wrapped) readers that are trained."""

    def __init__(
        self, config: PPOConfig, accelerator: Accelerator, output: Path, policy: Path, reward: Path | None
    ) -> None:
        self.accelerator, self.config = accelerator, config
        self.tokenizer = models.load_tokenizer(policy)
        self.policy_model = models.load_causal(policy)
        self.value_model = models.load_scorer(reward or policy, fresh_head=reward is None)
        self.reward_reader: SelectedScores | None = None
        if reward is not None:
            _same_tokenizer(self.tokenizer, policy, reward)
            self.reward_reader = _frozen(SelectedScores(models.load_scorer(reward)), accelerator)
        self.reference_reader: SelectedLogits | None = None
        if config.lora is None:
            self.reference_reader = _frozen(SelectedLogits(models.load_causal(policy)), accelerator)
        else:
            self.policy_model = models.add_lora(self.policy_model, config.lora, "CAUSAL_LM")
            self.value_model = models.add_lora(self.value_model, config.lora, "SEQ_CLS")
        if config.gradient_checkpointing:
            for model in (self.policy_model, self.value_model):
                model.gradient_checkpointing_enable()
        policy_reader, value_reader = SelectedLogits(self.policy_model), SelectedScores(self.value_model)
        policy_optimizer = adamw(policy_reader, config)
        value_optimizer = adamw(value_reader, config, config.value_learning_rate)
        self.policy, self.value, self.policy_optimizer, self.value_optimizer = accelerator.prepare(
            policy_reader, value_reader, policy_optimizer, value_optimizer
        )
        # Dropout is 0 in every config, so train mode changes no number; gradient checkpointing needs it.
        self.policy.train(config.gradient_checkpointing)
        self.value.train(config.gradient_checkpointing)
        self.average = Average(self.policy_model, config.ema) if config.ema is not None else None
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.checkpoints = Checkpoints(output, accelerator, config.checkpoint_seconds)

    def reference(self) -> tuple[torch.nn.Module, Callable[[], AbstractContextManager[Any]]]:
        """The reference policy: a module, and a context in which it is the reference."""
        if self.reference_reader is not None:
            return self.reference_reader, nullcontext
        return self.policy, self.policy_model.disable_adapter

    def score_by_model(self, group: Sequence[int], tokens_BT: Tensor, last_BT: Tensor) -> Tensor:
        """The reward model's score of each row at its last token, (B,)."""
        assert self.reward_reader is not None
        scores_B: Tensor = self.reward_reader(tokens_BT, last_BT)
        return scores_B

    def set_rates(self, share: float) -> None:
        """Both learning rates at a share of their peaks."""
        for optimizer, peak in (
            (self.policy_optimizer, self.config.learning_rate),
            (self.value_optimizer, self.config.value_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = peak * share

    def save(self, output: Path) -> None:
        """The policy at `output`, its averaged weights under `ema/`, the value network under `value/`."""
        if not self.accelerator.is_main_process:
            return
        if self.average is not None:
            averaged = models.merge_lora(self.average.copied_into(self.policy_model))
            models.save(averaged, self.tokenizer, output / "ema")
        models.save(models.merge_lora(self.policy_model), self.tokenizer, output)
        models.save(models.merge_lora(self.value_model), self.tokenizer, output / "value")


def _frozen(reader: Any, accelerator: Accelerator) -> Any:
    return reader.to(accelerator.device).eval().requires_grad_(False)


def _same_tokenizer(tokenizer: Any, policy: Path, reward: Path) -> None:
    if tokenizer_hash(tokenizer) != tokenizer_hash(models.load_tokenizer(reward)):
        raise UserError(
            f"{reward}: its tokenizer or chat template differs from that of {policy}; "
            "train the reward model from a model of the same family"
        )
