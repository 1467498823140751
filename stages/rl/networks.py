"""An online stage's models: policy, reference, reward, for PPO a value network; optimizers, checkpoints, averages."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gptlife.data.errors import UserError
from gptlife.data.tokens import tokenizer_hash
from gptlife.stages.modeling import adapters, loading
from gptlife.stages.modeling.forward import SelectedLogits, SelectedScores
from gptlife.stages.rl.config import OnlineConfig
from gptlife.stages.runtime.files import sync_directory
from gptlife.stages.training.checkpoints import Checkpoints
from gptlife.stages.training.setup import adamw

COPIES = "steps"
"""Where an online stage keeps its policy along the way: `steps/<step>/`."""
_KINDS = {"policy": ("CAUSAL_LM", SelectedLogits), "value": ("SEQ_CLS", SelectedScores)}
"""The networks' kinds: what their adapters are for, and how they are read."""


class Average:
    """Exponential moving average of a model's trainable weights (Ouyang et al. 2022, C.4: decay .992 per step).

    `torch.optim.swa_utils.AveragedModel` would hold the frozen weights a second time as well; its averaging function
    is used here on the trainable ones, in fp32 whatever the model's type.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self.weights = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        current = [p.detach().float() for name, p in model.named_parameters() if name in self.weights]
        self._average(list(self.weights.values()), current, None)

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


class Networks:
    """Everything with weights. `trained` are those that learn: `policy`, and for PPO `value`."""

    def __init__(
        self,
        config: OnlineConfig,
        value_learning_rate: float | None,
        accelerator: Accelerator,
        output: Path,
        policy: Path,
        reward: Path | None,
    ) -> None:
        self.accelerator, self.config, self.output = accelerator, config, output
        self.tokenizer = loading.load_tokenizer(policy)
        if reward is not None:
            _refuse_another_tokenizer(self.tokenizer, policy, reward)
        models = {"policy": loading.load_causal(policy, self.tokenizer)}
        rates = {"policy": config.learning_rate}
        if value_learning_rate is not None:
            models["value"] = loading.load_scorer(reward or policy, reward is None, self.tokenizer)
            rates["value"] = value_learning_rate
        self.reward_reader: nn.Module | None = None
        if reward is not None:
            self.reward_reader = _frozen(loading.load_reward(reward, config.ensemble), accelerator)
        self.reference_reader: SelectedLogits | None = None
        if config.lora is None:
            self.reference_reader = _frozen(SelectedLogits(copy.deepcopy(models["policy"])), accelerator)
        else:
            for name, model in models.items():
                models[name] = adapters.add_lora(model, config.lora, _KINDS[name][0])
        self.trained = self._prepared(models, rates)
        self.average = Average(self.policy.model, config.ema) if config.ema is not None else None
        averaged = self.average.weights if self.average is not None else None
        self.checkpoints = Checkpoints(
            output, accelerator, config.checkpoint_seconds, config.checkpoints_kept, averaged
        )

    def _prepared(self, models: dict[str, Any], rates: dict[str, float]) -> dict[str, Network]:
        """The models with reader and optimizer, prepared together."""
        if self.config.gradient_checkpointing:
            for model in models.values():
                model.gradient_checkpointing_enable()
        readers = [_KINDS[name][1](model) for name, model in models.items()]
        optimizers = [adamw(reader, self.config, rates[name]) for name, reader in zip(models, readers, strict=True)]
        prepared = self.accelerator.prepare(*readers, *optimizers)
        networks = {}
        for index, (name, model) in enumerate(models.items()):
            networks[name] = Network(model, prepared[index], prepared[len(models) + index], rates[name])
            # Dropout is 0 in every config, so train mode changes no number; gradient checkpointing needs it.
            networks[name].reader.train(self.config.gradient_checkpointing)
        return networks

    @property
    def policy(self) -> Network:
        """The policy."""
        return self.trained["policy"]

    @property
    def value_reader(self) -> nn.Module | None:
        """The value network's reader, where there is one."""
        return self.trained["value"].reader if "value" in self.trained else None

    def reference(self) -> tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]:
        """The reference policy: a module, and a context in which it is the reference."""
        if self.reference_reader is not None:
            return self.reference_reader, nullcontext
        return self.policy.reader, self.policy.model.disable_adapter

    def set_learning_rates(self, share: float) -> float:
        """Set all learning rates to a share of their peaks; the policy's."""
        for network in self.trained.values():
            for group in network.optimizer.param_groups:
                group["lr"] = network.learning_rate * share
        return self.policy.learning_rate * share

    def save(self) -> None:
        """The policy at the output, its averaged weights under `ema/`, a value network under `value/`."""
        if not self.accelerator.is_main_process:
            return
        if self.average is not None:
            averaged = adapters.merge_lora(self.average.copied_into(self.policy.model))
            loading.save(averaged, self.tokenizer, self.output / "ema")
        for name, network in self.trained.items():
            folder = self.output if name == "policy" else self.output / name
            loading.save(adapters.merge_lora(network.model), self.tokenizer, folder)

    def keep_copy(self, step: int) -> None:
        """A copy of the policy under `steps/<step>/`, whole or absent; the policy itself stays as it is."""
        if self.accelerator.is_main_process:
            final = self.output / COPIES / str(step)
            beside = final.with_suffix(".partial")
            loading.save(adapters.merge_lora(copy.deepcopy(self.policy.model)), self.tokenizer, beside)
            beside.rename(final)
            sync_directory(final.parent)
        self.accelerator.wait_for_everyone()

    def forget_copies_after(self, step: int) -> None:
        """Remove the copies that an interrupted run kept beyond its checkpoint; those steps are taken again."""
        if self.accelerator.is_main_process:
            for copied in (self.output / COPIES).glob("*"):
                if not copied.name.isdecimal() or int(copied.name) > step:
                    shutil.rmtree(copied)
        self.accelerator.wait_for_everyone()


def _frozen(reader: Any, accelerator: Accelerator) -> Any:
    return reader.to(accelerator.device).eval().requires_grad_(False)


def _refuse_another_tokenizer(tokenizer: Any, policy: Path, reward: Path) -> None:
    if tokenizer_hash(tokenizer) != tokenizer_hash(loading.load_tokenizer(reward)):
        raise UserError(
            f"{reward}: its tokenizer or chat template differs from that of {policy}; "
            "train the reward model from a model of the same family"
        )
