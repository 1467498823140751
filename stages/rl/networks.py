"""An online stage's models: policy, reference, reward, for PPO a value network; optimizers, checkpoints, averages."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gptlife.data.errors import UserError
from gptlife.data.tokens import tokenizer_hash
from gptlife.reward.logprobs import selected_logprobs
from gptlife.stages.modeling import adapters, loading
from gptlife.stages.modeling.forward import SelectedLogits, SelectedScores
from gptlife.stages.rl.episodes import Picked
from gptlife.stages.runtime.files import sync_directory
from gptlife.stages.training.checkpoints import Checkpoints
from gptlife.stages.training.setup import adamw

if TYPE_CHECKING:
    from gptlife.stages.rl.steps import Algorithm

COPIES = "steps"
"""Where an online stage keeps its policy along the way: `steps/<step>/`."""
_KINDS = {"policy": ("CAUSAL_LM", SelectedLogits), "value": ("SEQ_CLS", SelectedScores)}
"""The networks' kinds: what their adapters are for, and how they are read."""


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


@dataclass
class Network:
    """A model that is trained."""

    model: Any
    """The transformers model, adapters included."""
    reader: nn.Module
    """The prepared (possibly wrapped) reader of the model: what forward passes go through."""
    optimizer: Any
    learning_rate: float
    """Peak."""


class Players:
    """Everything with weights. `networks` are those that are trained: `policy`, and for PPO `value`."""

    def __init__(
        self, algorithm: Algorithm, accelerator: Accelerator, output: Path, policy: Path, reward: Path | None
    ) -> None:
        config = algorithm.config
        self.accelerator, self.config, self.output = accelerator, config, output
        self.tokenizer = loading.load_tokenizer(policy)
        trained = {"policy": loading.load_causal(policy)}
        rates = {"policy": config.learning_rate}
        if algorithm.value_learning_rate is not None:
            trained["value"] = loading.load_scorer(reward or policy, fresh_head=reward is None)
            rates["value"] = algorithm.value_learning_rate
        self.reward_reader: nn.Module | None = None
        if reward is not None:
            _same_tokenizer(self.tokenizer, policy, reward)
            self.reward_reader = _frozen(loading.load_reward(reward, config.ensemble), accelerator)
        self.reference_reader: SelectedLogits | None = None
        if config.lora is None:
            self.reference_reader = _frozen(SelectedLogits(loading.load_causal(policy)), accelerator)
        else:
            for name, model in trained.items():
                trained[name] = adapters.add_lora(model, config.lora, _KINDS[name][0])
        self.networks = self._networks(trained, rates)
        self.policy_model = self.policy.model
        self.average = Average(self.policy_model, config.ema) if config.ema is not None else None
        averaged = self.average.weights if self.average is not None else None
        self.checkpoints = Checkpoints(
            output, accelerator, config.checkpoint_seconds, config.checkpoints_kept, averaged
        )

    def _networks(self, trained: dict[str, Any], rates: dict[str, float]) -> dict[str, Network]:
        """The models with reader and optimizer, prepared together."""
        if self.config.gradient_checkpointing:
            for model in trained.values():
                model.gradient_checkpointing_enable()
        readers = [_KINDS[name][1](model) for name, model in trained.items()]
        optimizers = [adamw(reader, self.config, rates[name]) for name, reader in zip(trained, readers, strict=True)]
        prepared = self.accelerator.prepare(*readers, *optimizers)
        networks = {}
        for place, (name, model) in enumerate(trained.items()):
            networks[name] = Network(model, prepared[place], prepared[len(trained) + place], rates[name])
            # Dropout is 0 in every config, so train mode changes no number; gradient checkpointing needs it.
            networks[name].reader.train(self.config.gradient_checkpointing)
        return networks

    @property
    def policy(self) -> Network:
        """The policy."""
        return self.networks["policy"]

    @property
    def value_reader(self) -> nn.Module | None:
        """The value network's reader, where there is one."""
        return self.networks["value"].reader if "value" in self.networks else None

    def reference(self) -> tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]:
        """The reference policy: a module, and a context in which it is the reference."""
        if self.reference_reader is not None:
            return self.reference_reader, nullcontext
        return self.policy.reader, self.policy_model.disable_adapter

    def logprobs(self, picked: Picked) -> Tensor:
        """The policy's log-probabilities of some episodes' response tokens, (N,), with gradient."""
        logits_NV = self.policy.reader(picked.tokens_BT, picked.select_BT)
        return selected_logprobs(logits_NV, picked.targets_N, self.config.temperature)

    def score_by_model(self, group: Sequence[int], tokens_BT: Tensor, last_BT: Tensor) -> Tensor:
        """The reward model's score of each row at its last token, (B,)."""
        assert self.reward_reader is not None
        scores_B: Tensor = self.reward_reader(tokens_BT, last_BT)
        return scores_B

    def set_rates(self, share: float) -> None:
        """All learning rates at a share of their peaks."""
        for network in self.networks.values():
            for group in network.optimizer.param_groups:
                group["lr"] = network.learning_rate * share

    def save(self) -> None:
        """The policy at the output, its averaged weights under `ema/`, a value network under `value/`."""
        if not self.accelerator.is_main_process:
            return
        if self.average is not None:
            averaged = adapters.merge_lora(self.average.copied_into(self.policy_model))
            loading.save(averaged, self.tokenizer, self.output / "ema")
        for name, network in self.networks.items():
            place = self.output if name == "policy" else self.output / name
            loading.save(adapters.merge_lora(network.model), self.tokenizer, place)

    def keep_copy(self, step: int) -> None:
        """A copy of the policy under `steps/<step>/`, whole or absent; the policy itself stays as it is."""
        if self.accelerator.is_main_process:
            final = self.output / COPIES / str(step)
            beside = final.with_suffix(".partial")
            loading.save(adapters.merge_lora(copy.deepcopy(self.policy_model)), self.tokenizer, beside)
            beside.rename(final)
            sync_directory(final.parent)
        self.accelerator.wait_for_everyone()

    def forget_copies_after(self, step: int) -> None:
        """Remove what an interrupted run has kept beyond its checkpoint; those steps are taken again."""
        if self.accelerator.is_main_process:
            for copied in (self.output / COPIES).glob("*"):
                if not copied.name.isdecimal() or int(copied.name) > step:
                    shutil.rmtree(copied)
        self.accelerator.wait_for_everyone()


def _frozen(reader: Any, accelerator: Accelerator) -> Any:
    return reader.to(accelerator.device).eval().requires_grad_(False)


def _same_tokenizer(tokenizer: Any, policy: Path, reward: Path) -> None:
    if tokenizer_hash(tokenizer) != tokenizer_hash(loading.load_tokenizer(reward)):
        raise UserError(
            f"{reward}: its tokenizer or chat template differs from that of {policy}; "
            "train the reward model from a model of the same family"
        )
