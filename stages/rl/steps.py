"""One step of an online stage: sample, score, shape, update. What sets PPO and RLOO apart is an `Algorithm`.

Legend: B episodes, R response tokens, T prompt and response tokens.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from gptlife.data.errors import UserError
from gptlife.reward import kl
from gptlife.reward.judges.judge import Prompt, checked, load_function, load_judge
from gptlife.reward.objective import PolicyTerms, ValueTerms
from gptlife.stages.generation.answering import encode_prompts, text_of
from gptlife.stages.generation.sampler import Answer, sample
from gptlife.stages.modeling.lengths import row_length
from gptlife.stages.rl.config import OnlineConfig
from gptlife.stages.rl.episodes import Experience, Picked, Rollouts, pick, read, share_answers
from gptlife.stages.rl.metrics import episode_metrics, standard_error, text_metrics, update_metrics
from gptlife.stages.rl.networks import Players
from gptlife.stages.training.lm import PackedRows, lm_loss
from gptlife.stages.training.loop import (
    Sums,
    backward_over,
    finite_norm,
    gather_sums,
    micro_batches,
    on_device,
    step_with,
)
from gptlife.stages.training.setup import Schedule
from gptlife.stages.training.token_stream import token_stream

Loss = Callable[[Players, Picked], PolicyTerms | ValueTerms]


class Algorithm(Protocol):
    """What a step's answers are worth, and what is learnt from that."""

    @property
    def name(self) -> str:
        """The stage's."""
        ...

    @property
    def title(self) -> str:
        """As people write it."""
        ...

    @property
    def config(self) -> OnlineConfig:
        """The stage's."""
        ...

    @property
    def answers_per_prompt(self) -> int:
        """A prompt's answers stand together in a batch."""
        ...

    @property
    def value_learning_rate(self) -> float | None:
        """Peak learning rate of the value network; None: there is none."""
        ...

    def experience(self, found: dict[str, Tensor], rollouts: Rollouts, kl_coef: float) -> Experience:
        """Rewards, advantages and returns of what the models said (`episodes.read`)."""
        ...

    def actions(self, rollouts: Rollouts, episodes: Sequence[int]) -> float:
        """How many actions, over which losses are a mean, some episodes have."""
        ...

    def losses(self, step: int) -> dict[str, Loss]:
        """The loss of each network that learns in this step, by its name in `Players.networks`; sums over actions."""
        ...


class Minibatch(NamedTuple):
    """The episodes of one optimizer step."""

    number: int
    """Its place in the step, passes over the same episodes included."""
    episodes: list[int]
    groups: list[list[int]]
    """This process's share, in micro-batches."""


class Steps:
    """Takes steps; which prompts and pretraining rows a step has is a function of its number."""

    def __init__(
        self,
        algorithm: Algorithm,
        accelerator: Accelerator,
        players: Players,
        prompts: Sequence[Prompt],
        output: Path,
    ) -> None:
        config, name = algorithm.config, algorithm.name
        self.algorithm, self.config, self.accelerator = algorithm, config, accelerator
        self.players, self.prompts = players, prompts
        self.encoded = encode_prompts(
            players.tokenizer, prompts, players.policy_model, config.max_new_tokens, f"{name}.prompts"
        )
        n_prompts = config.batch_size // algorithm.answers_per_prompt
        self.order = Schedule(len(prompts), [n_prompts] * config.steps, [], config.seed)
        self.minibatches = config.batch_size // config.minibatch_size
        self.judge = (
            load_judge(config.judge, f"{name}.judge") if config.judge and not config.judge.reward_model else None
        )
        self.function = None
        if config.reward_function is not None:
            function = config.reward_function
            self.function = checked(load_function(function, f"{name}.reward_function"), function)
        self.ptx: PackedRows | None = None
        if config.pretraining is not None and config.ptx_coef:
            length = row_length(config.ptx_length, players.policy_model, f"{name}.ptx_length")
            stream, _ = token_stream(
                config.pretraining, f"{name}.pretraining", players.tokenizer, output, accelerator, config.seed
            )
            self.ptx = PackedRows(stream, length)
            rows = max(1, round(config.minibatch_size * config.ptx_rows_per_episode))
            updates = config.steps * config.inner_epochs * self.minibatches
            self.ptx_order = Schedule(len(self.ptx), [rows] * updates, [], config.seed + 1)

    @property
    def has_ptx(self) -> bool:
        """Whether the pretraining term is on."""
        return self.ptx is not None

    def take(self, step: int, kl_coef: float) -> tuple[dict[str, Any], float]:
        """One step from sampling to the last update; its metrics, and the next step's KL coefficient.

        Above `target_kl` there is no update, and the metrics have `stopped_at`.
        """
        config, started, k = self.config, time.monotonic(), self.algorithm.answers_per_prompt
        self.players.set_rates(min(1.0, 0.1 + 0.9 * step / config.warmup_steps) if config.warmup_steps else 1.0)
        chosen = [index for index in self.order.batch(step) for _ in range(k)]
        rollouts = self._sample(step, chosen)
        sampled = time.monotonic()
        texts = [text_of(self.players.tokenizer, Answer(tokens, [], True)) for tokens in rollouts.responses]
        minibatches = self._minibatches(step, rollouts)
        experience = self._experience(rollouts, chosen, texts, minibatches[: self.minibatches], kl_coef, step)
        read_at = time.monotonic()
        metrics = {**episode_metrics(rollouts, experience, kl_coef, k), **text_metrics(texts)}
        if config.target_kl is not None and metrics["kl"] > config.target_kl:
            metrics["stopped_at"] = step + 1
        else:
            metrics |= update_metrics([self._update(step, part, rollouts, experience) for part in minibatches])
            if self.players.average is not None:
                self.players.average.update(self.players.policy_model)
        metrics |= {
            **self._judged(chosen, texts),
            "kl_coef": kl_coef,
            "learning_rate": self.players.policy.optimizer.param_groups[0]["lr"],
            "seconds_sampling": sampled - started,
            "seconds_scoring": read_at - sampled,
            "seconds_updating": time.monotonic() - read_at,
            "step_tokens": sum(rollouts.lengths),
            "tokens_per_second": sum(rollouts.lengths) / (time.monotonic() - started),
        }
        if step % config.sample_every == 0 or step == config.steps - 1 or "stopped_at" in metrics:
            metrics["samples"] = [
                {"prompt": self.prompts[chosen[i]]["messages"][-1]["content"], "answer": texts[i], "score": score}
                for i, score in enumerate(experience.scores_B[:4].tolist())
            ]
        if config.adaptive_kl is not None:
            target, horizon = config.adaptive_kl.target, config.adaptive_kl.horizon
            kl_coef = kl.adapt(kl_coef, metrics["kl"], target, config.batch_size, horizon)
        return metrics, kl_coef

    def _sample(self, step: int, chosen: Sequence[int]) -> Rollouts:
        config, accelerator = self.config, self.accelerator
        prompts = [self.encoded[index] for index in chosen]
        mine = list(range(accelerator.process_index, len(prompts), accelerator.num_processes))
        with accelerator.autocast():
            answers = sample(
                self.players.policy_model,
                [prompts[place] for place in mine],
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                eos=self.players.tokenizer.eos_token_id,
                seed=f"{self.algorithm.name} {config.seed} {step}",
                numbers=mine,
                generation_batch_size=config.generation_batch_size,
            )
        return share_answers(accelerator, prompts, mine, answers, config.max_new_tokens)

    def _minibatches(self, step: int, rollouts: Rollouts) -> list[Minibatch]:
        """Every pass over the step's episodes, each in an order of its own."""
        found: list[Minibatch] = []
        for epoch in range(self.config.inner_epochs):
            order = list(range(self.config.batch_size))
            random.Random(f"minibatches {self.config.seed} {step} {epoch}").shuffle(order)
            for start in range(0, len(order), self.config.minibatch_size):
                part = order[start : start + self.config.minibatch_size]
                groups = micro_batches(part, rollouts.lengths, self.accelerator, self.config.micro_batch_tokens)
                found.append(Minibatch(len(found), part, groups))
        return found

    def _experience(
        self,
        rollouts: Rollouts,
        chosen: Sequence[int],
        texts: Sequence[str],
        minibatches: Sequence[Minibatch],
        kl_coef: float,
        step: int,
    ) -> Experience:
        """Of all episodes; `minibatches` are those of the first pass, in whose micro-batches they are read."""
        players = self.players

        def by_function(group: Sequence[int], tokens_BT: Tensor, last_BT: Tensor) -> Tensor:
            assert self.function is not None
            scores = self.function([self.prompts[chosen[i]] for i in group], [texts[i] for i in group])
            return torch.tensor(scores, device=self.accelerator.device)

        found = read(
            self.accelerator,
            players.policy.reader,
            players.reference(),
            players.value_reader,
            players.score_by_model if self.function is None else by_function,
            rollouts,
            [group for minibatch in minibatches for group in minibatch.groups],
            self.config.temperature,
        )
        for index, score in zip(chosen, found["scores"].tolist(), strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"{self.algorithm.name}: step {step + 1}: the score of the answer to prompt {index + 1} is "
                    f"{score}; nothing was stepped; look at the reward model"
                )
        return self.algorithm.experience(found, rollouts, kl_coef)

    def _update(self, step: int, minibatch: Minibatch, rollouts: Rollouts, experience: Experience) -> dict[str, float]:
        """One optimizer step of every network that learns, on one minibatch; its sums and gradient norms.

        All gradients are there, and their norms finite, before any network moves.
        """
        accelerator, networks = self.accelerator, self.players.networks
        place = f"{self.algorithm.name}: step {step + 1}, minibatch {minibatch.number % self.minibatches + 1}"
        losses = self.algorithm.losses(step)
        n_actions = self.algorithm.actions(rollouts, minibatch.episodes)
        sums: dict[str, float] = {"n_actions": n_actions}
        for name, loss in losses.items():

            def terms(group: Sequence[int], loss: Loss = loss) -> tuple[Tensor, Sums]:
                picked = pick(rollouts, experience, group or [0], accelerator.device)
                return _counted(loss(self.players, picked)._asdict(), bool(group))

            text_too = name == "policy" and self.ptx is not None
            found = backward_over(
                accelerator, networks[name].reader, minibatch.groups, terms, n_actions, last=not text_too
            )
            sums |= gather_sums(accelerator, {f"{name}/{key}": total for key, total in found.items()})
            if text_too:
                sums["ptx_loss"] = self._ptx(step * self.config.inner_epochs * self.minibatches + minibatch.number)
        for name in losses:
            reader, max_norm = networks[name].reader, self.config.max_grad_norm
            sums[f"{name}_grad_norm"] = finite_norm(accelerator, reader, max_norm, place)
        for name in losses:
            step_with(networks[name].optimizer)
        return sums

    def _ptx(self, count: int) -> float:
        """Accumulate the gradient of ptx_coef times the mean pretraining loss; that loss in nats a token."""
        assert self.ptx is not None
        rows, config, policy = self.ptx, self.config, self.players.policy.reader
        batch = self.ptx_order.batch(count)
        n_targets = sum(rows.weights[index] for index in batch)
        groups = micro_batches(batch, rows.lengths, self.accelerator, config.micro_batch_tokens)

        def loss(group: Sequence[int]) -> tuple[Tensor, Sums]:
            collated = on_device(rows.collate(group or batch[:1]), self.accelerator.device)
            nll, _ = lm_loss(policy, collated)
            return _counted({"loss_sum": config.ptx_coef * nll, "nll": nll}, bool(group))

        sums = backward_over(self.accelerator, policy, groups, loss, n_targets)
        return gather_sums(self.accelerator, sums)["nll"] / n_targets

    def _judged(self, chosen: Sequence[int], texts: Sequence[str]) -> dict[str, float | None]:
        if self.judge is None:
            return {}
        scores = self.judge([self.prompts[index] for index in chosen], texts)
        error = standard_error(torch.tensor(scores), self.algorithm.answers_per_prompt)
        return {"gold": sum(scores) / len(scores), "gold_se": error}


def _counted(terms: dict[str, Tensor], counts: bool) -> tuple[Tensor, Sums]:
    """(loss, further sums); all zero for a micro-batch that only keeps step with other processes."""
    kept = {name: term if counts else term * 0.0 for name, term in terms.items()}
    return kept.pop("loss_sum"), kept
