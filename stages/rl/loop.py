"""The loop of every online stage: each step learns from answers that the policy gave just now.

    sample    answers to a batch of prompts, temperature 1
    read      log-probabilities, values, and the reward model's score at the last token (or a Python function's)
    shape     the algorithm's: rewards and advantages
    update    the algorithm's losses on minibatches, and ptx_coef times the language-model loss on pretraining text, the
              two gradients accumulated into one step

The reference is the policy as it came. Learning rates warm up from a tenth and stay. What sets PPO, RLOO and GRPO apart
is an `Algorithm`, in the file of its stage.

Left out: entropy bonus, per-token rewards other than KL, asynchronous sampling.

Legend: B episodes, T prompt and response tokens.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from gptlife.data.errors import UserError
from gptlife.data.forms import prompts as load_prompts
from gptlife.reward import kl
from gptlife.reward.judges.functions import checked, load_function
from gptlife.reward.judges.judge import load_judge
from gptlife.reward.judges.verdicts import Prompt, scores_of
from gptlife.stages.generation.sampler import encode_prompts, sample, text_of
from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import check_reward
from gptlife.stages.rl.episodes import Experience, Readings, Rollouts, minibatch_of, read, share_answers
from gptlife.stages.rl.metrics import episode_metrics, standard_error, text_metrics, update_metrics
from gptlife.stages.rl.networks import Networks
from gptlife.stages.rl.pretraining_term import PretrainingTerm
from gptlife.stages.runtime import signals
from gptlife.stages.runtime.device import peak_gpu_memory_mb
from gptlife.stages.runtime.metric_log import MetricLog
from gptlife.stages.runtime.stage import Metrics
from gptlife.stages.training.loop import (
    Sums,
    backward_over,
    finite_norm,
    gather_sums,
    micro_batches,
    seed_step,
    step_with,
)
from gptlife.stages.training.setup import Schedule, accelerator_for

SAMPLES = 4
"""Answers of a step that the log shows."""


class Part(NamedTuple):
    """The episodes of one optimizer step."""

    number: int
    """Counted over the step, passes over the same episodes included."""
    episodes: list[int]
    groups: list[list[int]]
    """This process's share, in micro-batches."""


def train(algorithm: Algorithm, output: Path, policy: Path, reward: Path | None) -> Metrics:
    """Fine-tune and save; metrics: those of the last step, and the cost.

    A run that `target_kl` ends is complete: `stopped_at` is the step that was measured and not learnt from, so its
    metrics are those of the saved weights.

    Raises:
        UserError: when the config contradicts itself, a model can't be used, or a number is not finite.
    """
    config, name = algorithm.config, algorithm.name
    check_reward(name)(config, () if reward is None else ("reward",))
    accelerator = accelerator_for(config, output)
    networks = Networks(config, algorithm.value_learning_rate, accelerator, output, policy, reward)
    trainer = Trainer(algorithm, accelerator, networks, load_prompts(config.prompts, config.seed), output)
    checkpoints = networks.checkpoints
    state = checkpoints.restore() or {"step": 0, "kl_coef": config.kl_coef, "tokens": 0, "seconds": 0.0}
    step, kl_coef, tokens = int(state["step"]), float(state["kl_coef"]), int(state["tokens"])
    networks.forget_copies_after(step)
    started = time.monotonic() - float(state["seconds"])
    metrics: dict[str, Any] = {}
    log = MetricLog(output, name, config.steps, start=step, track=config.track, main=accelerator.is_main_process)
    with log, signals.stop_after_step():
        while step < config.steps and "stopped_at" not in metrics:
            seed_step(config.seed, step, accelerator.process_index)
            metrics, kl_coef = trainer.step(step, kl_coef)
            step += 1
            tokens += int(metrics["step_tokens"])
            log.log(step, metrics, _status(metrics))
            if "stopped_at" in metrics:
                log.say(f"stopped at step {step}: KL {metrics['kl']:.2f} is above target_kl {config.target_kl}")
            elif step < config.steps:
                if config.keep_every and step % config.keep_every == 0:
                    networks.keep_copy(step)
                seconds = time.monotonic() - started
                checkpoints.keep_up(step, {"kl_coef": kl_coef, "tokens": tokens, "seconds": seconds})
    networks.save()
    seconds = time.monotonic() - started
    return {
        **{key: value for key, value in metrics.items() if key != "samples"},
        "algorithm": f"{algorithm.title}-ptx" if trainer.ptx is not None else algorithm.title,
        "steps": step,
        "episodes": step * config.batch_size,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        **checkpoints.cost(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _status(metrics: dict[str, Any]) -> str:
    gold = f" gold {metrics['gold']:.3f}" if "gold" in metrics else ""
    return (
        f"score {metrics['score']:.3f}{gold} kl {metrics['kl']:.2f} length {metrics['length']:.1f} "
        f"{metrics['tokens_per_second']:,.0f} tokens/s{' stopped' if 'stopped_at' in metrics else ''}"
    )


class Trainer:
    """Takes steps; which prompts and pretraining rows a step has is a function of its number."""

    def __init__(
        self,
        algorithm: Algorithm,
        accelerator: Accelerator,
        networks: Networks,
        prompts: Sequence[Prompt],
        output: Path,
    ) -> None:
        config, name = algorithm.config, algorithm.name
        self.algorithm, self.config, self.accelerator = algorithm, config, accelerator
        self.networks, self.prompts = networks, prompts
        model, tokenizer = networks.policy.model, networks.tokenizer
        self.encoded = encode_prompts(tokenizer, prompts, model, config.max_new_tokens, f"{name}.prompts")
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
        self.ptx: PretrainingTerm | None = None
        if config.pretraining is not None and config.ptx_coef:
            self.ptx = PretrainingTerm(config, name, model, tokenizer, output, accelerator)

    def step(self, step: int, kl_coef: float) -> tuple[dict[str, Any], float]:
        """One step (from 0) from sampling to the last update; its metrics, and the next step's KL coefficient.

        Above `target_kl` there is no update, and the metrics have `stopped_at`.
        """
        config, started, k = self.config, time.monotonic(), self.algorithm.answers_per_prompt
        warmth = min(1.0, 0.1 + 0.9 * step / config.warmup_steps) if config.warmup_steps else 1.0
        learning_rate = self.networks.set_learning_rates(warmth)
        chosen = [index for index in self.order.batch(step) for _ in range(k)]
        rollouts = self._sample(step, chosen)
        sampled = time.monotonic()
        texts = [text_of(self.networks.tokenizer, tokens) for tokens in rollouts.responses]
        parts = self._parts(step, rollouts)
        readings = self._read(step, rollouts, chosen, texts, parts[: self.minibatches])
        experience = self.algorithm.experience(readings, rollouts, kl_coef)
        read_at = time.monotonic()
        metrics = {**episode_metrics(rollouts, experience, kl_coef, k), **experience.metrics, **text_metrics(texts)}
        if config.target_kl is not None and metrics["kl"] > config.target_kl:
            metrics["stopped_at"] = step + 1
        else:
            metrics |= update_metrics([self._update(step, kl_coef, part, rollouts, experience) for part in parts])
            if self.networks.average is not None:
                self.networks.average.update(self.networks.policy.model)
        metrics |= {
            **self._judged(chosen, texts),
            "kl_coef": kl_coef,
            "learning_rate": learning_rate,
            "seconds_sampling": sampled - started,
            "seconds_scoring": read_at - sampled,
            "seconds_updating": time.monotonic() - read_at,
            "step_tokens": sum(rollouts.lengths),
            "tokens_per_second": sum(rollouts.lengths) / (time.monotonic() - started),
        }
        if step % config.sample_every == 0 or step == config.steps - 1 or "stopped_at" in metrics:
            metrics["samples"] = self._samples(chosen, texts, readings)
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
                self.networks.policy.model,
                [prompts[index] for index in mine],
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                eos=self.networks.tokenizer.eos_token_id,
                seed=f"{self.algorithm.name} {config.seed} {step}",
                numbers=mine,
                generation_batch_size=config.generation_batch_size,
            )
        return share_answers(accelerator, prompts, mine, answers, config.max_new_tokens)

    def _parts(self, step: int, rollouts: Rollouts) -> list[Part]:
        """The step's episodes cut into minibatches, once for each pass, each pass in an order of its own."""
        parts: list[Part] = []
        for epoch in range(self.config.inner_epochs):
            order = list(range(self.config.batch_size))
            random.Random(f"minibatches {self.config.seed} {step} {epoch}").shuffle(order)
            for start in range(0, len(order), self.config.minibatch_size):
                episodes = order[start : start + self.config.minibatch_size]
                groups = micro_batches(episodes, rollouts.lengths, self.accelerator, self.config.micro_batch_tokens)
                parts.append(Part(len(parts), episodes, groups))
        return parts

    def _read(
        self, step: int, rollouts: Rollouts, chosen: Sequence[int], texts: Sequence[str], parts: Sequence[Part]
    ) -> Readings:
        """What the models say of all episodes; `parts` are the first pass's, in whose micro-batches they are read."""

        def by_function(group: Sequence[int], inputs: dict[str, Tensor], last_BT: Tensor) -> Tensor:
            assert self.function is not None
            verdicts = self.function([self.prompts[chosen[i]] for i in group], [texts[i] for i in group])
            return torch.tensor(scores_of(verdicts), device=self.accelerator.device)

        def by_model(group: Sequence[int], inputs: dict[str, Tensor], last_BT: Tensor) -> Tensor:
            assert self.networks.reward_reader is not None
            scores_B: Tensor = self.networks.reward_reader(inputs, last_BT)
            return scores_B

        readings = read(
            self.accelerator,
            self.networks.policy.reader,
            self.networks.reference(),
            self.networks.value_reader,
            by_model if self.function is None else by_function,
            rollouts,
            [group for part in parts for group in part.groups],
            self.config.temperature,
        )
        for index, score in zip(chosen, readings.scores_B.tolist(), strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"{self.algorithm.name}: step {step + 1}: the score of the answer to prompt {index + 1} is "
                    f"{score}; nothing was stepped; look at the reward model"
                )
        return readings

    def _update(
        self, step: int, kl_coef: float, part: Part, rollouts: Rollouts, experience: Experience
    ) -> dict[str, float]:
        """One optimizer step of every network that learns, on one minibatch; its sums and gradient norms.

        All gradients are there, and their norms finite, before any network moves.
        """
        accelerator, networks = self.accelerator, self.networks.trained
        place = f"{self.algorithm.name}: step {step + 1}, minibatch {part.number % self.minibatches + 1}"
        losses = self.algorithm.losses(step, kl_coef)
        denominator = self.algorithm.denominator(rollouts, experience, part.episodes)
        sums: dict[str, float] = {"denominator": denominator}

        def terms(loss: Loss, reader: torch.nn.Module, group: Sequence[int]) -> tuple[Tensor, Sums]:
            """Of one micro-batch; all zero for one that only keeps step with other processes."""
            minibatch = minibatch_of(rollouts, experience, group or [0], accelerator.device)
            named = {key: term if group else term * 0.0 for key, term in loss(reader, minibatch).items()}
            return named.pop("loss_sum"), named

        for name, loss in losses.items():
            reader, ptx = networks[name].reader, self.ptx if name == "policy" else None
            totals = backward_over(
                accelerator, reader, part.groups, partial(terms, loss, reader), denominator, last=ptx is None
            )
            sums |= gather_sums(accelerator, {f"{name}/{key}": total for key, total in totals.items()})
            if ptx is not None:
                sums["ptx_loss"] = ptx.backward(
                    reader, step * self.config.inner_epochs * self.minibatches + part.number
                )
        for name in losses:
            sums[f"{name}_grad_norm"] = finite_norm(
                accelerator, networks[name].reader, self.config.max_grad_norm, place
            )
        for name in losses:
            step_with(networks[name].optimizer)
        return sums

    def _samples(self, chosen: Sequence[int], texts: Sequence[str], readings: Readings) -> list[dict[str, Any]]:
        return [
            {"prompt": self.prompts[chosen[i]]["messages"][-1]["content"], "answer": texts[i], "score": score}
            for i, score in enumerate(readings.scores_B[:SAMPLES].tolist())
        ]

    def _judged(self, chosen: Sequence[int], texts: Sequence[str]) -> dict[str, float | None]:
        if self.judge is None:
            return {}
        scores = scores_of(self.judge([self.prompts[index] for index in chosen], texts))
        error = standard_error(torch.tensor(scores), self.algorithm.answers_per_prompt)
        return {"gold": sum(scores) / len(scores), "gold_se": error}
