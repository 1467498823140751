"""One PPO step: sample, score, shape, update.

Legend: B episodes, R response tokens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gptlife.data.config import UserError
from gptlife.reward import kl
from gptlife.reward.judges import Prompt, checked, load_function, load_judge
from gptlife.reward.objective import policy_loss, value_loss
from gptlife.stages.answering import encode_prompts, text_of
from gptlife.stages.corpus import token_stream
from gptlife.stages.episodes import Experience, Rollouts, read, selected_logprobs, shape, share_answers
from gptlife.stages.language import PackedRows, lm_loss
from gptlife.stages.loop import Sums, backward_over, finite_norm, gather_sums, micro_batches, on_device, step_with
from gptlife.stages.models import row_length
from gptlife.stages.ppo_metrics import episode_metrics, text_metrics, update_metrics
from gptlife.stages.rollout import Answer, sample
from gptlife.stages.training import Schedule

if TYPE_CHECKING:
    from gptlife.stages.ppo import PPOConfig
    from gptlife.stages.ppo_models import Players


class Steps:
    """Takes PPO steps; which prompts and pretraining rows a step has is a function of its number."""

    def __init__(
        self, config: PPOConfig, accelerator: Accelerator, players: Players, prompts: Sequence[Prompt], output: Path
    ) -> None:
        self.config, self.accelerator, self.players, self.prompts = config, accelerator, players, prompts
        self.encoded = encode_prompts(
            players.tokenizer, prompts, players.policy_model, config.max_new_tokens, "ppo.prompts"
        )
        self.order = Schedule(len(prompts), [config.batch_size] * config.steps, [], config.seed)
        self.judge = load_judge(config.judge, "ppo.judge") if config.judge and not config.judge.reward_model else None
        self.function = None
        if config.reward_function is not None:
            name = config.reward_function
            self.function = checked(load_function(name, "ppo.reward_function"), name)
        self.ptx: PackedRows | None = None
        if config.pretraining is not None and config.ptx_coef:
            length = row_length(config.ptx_length, players.policy_model, "ppo.ptx_length")
            stream, _ = token_stream(
                config.pretraining, "ppo.pretraining", players.tokenizer, output, accelerator, config.seed
            )
            self.ptx = PackedRows(stream, length)
            rows = max(1, round(config.minibatch_size * config.ptx_rows_per_episode))
            updates = config.steps * config.inner_epochs * (config.batch_size // config.minibatch_size)
            self.ptx_order = Schedule(len(self.ptx), [rows] * updates, [], config.seed + 1)

    @property
    def has_ptx(self) -> bool:
        """Whether the pretraining term is on."""
        return self.ptx is not None

    def take(self, step: int, kl_coef: float) -> tuple[dict[str, Any], float]:
        """One step from sampling to the last update; its metrics, and the next step's KL coefficient."""
        config, started = self.config, time.monotonic()
        chosen = self.order.batch(step)
        rollouts = self._sample(step, chosen)
        sampled = time.monotonic()
        texts = [text_of(self.players.tokenizer, Answer(tokens, [], True)) for tokens in rollouts.responses]
        minibatches = [self._minibatches(step, epoch) for epoch in range(config.inner_epochs)]
        groups = [
            [self._groups(minibatch, rollouts) for minibatch in minibatches_of_epoch]
            for minibatches_of_epoch in minibatches
        ]
        experience = self._experience(rollouts, chosen, texts, [g for of in groups[0] for g in of], kl_coef)
        read_at = time.monotonic()
        self.players.set_rates(min(1.0, 0.1 + 0.9 * step / config.warmup_steps) if config.warmup_steps else 1.0)
        updates = [
            self._update(step, epoch, number, minibatch, groups[epoch][number], rollouts, experience)
            for epoch, minibatches_of_epoch in enumerate(minibatches)
            for number, minibatch in enumerate(minibatches_of_epoch)
        ]
        if self.players.average is not None:
            self.players.average.update(self.players.policy_model)
        metrics = {
            **episode_metrics(rollouts, experience, kl_coef),
            **text_metrics(texts),
            **update_metrics(updates),
            **self._judged(chosen, texts),
            "kl_coef": kl_coef,
            "learning_rate": self.players.policy_optimizer.param_groups[0]["lr"],
            "seconds_sampling": sampled - started,
            "seconds_scoring": read_at - sampled,
            "seconds_updating": time.monotonic() - read_at,
            "step_tokens": sum(rollouts.lengths),
            "tokens_per_second": sum(rollouts.lengths) / (time.monotonic() - started),
        }
        if step % config.sample_every == 0 or step == config.steps - 1:
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
                seed=f"ppo {config.seed} {step}",
                numbers=mine,
                rows=config.rows,
            )
        return share_answers(accelerator, prompts, mine, answers, config.max_new_tokens)

    def _minibatches(self, step: int, epoch: int) -> list[list[int]]:
        order = list(range(self.config.batch_size))
        random.Random(f"minibatches {self.config.seed} {step} {epoch}").shuffle(order)
        size = self.config.minibatch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _groups(self, minibatch: Sequence[int], rollouts: Rollouts) -> list[list[int]]:
        return micro_batches(minibatch, rollouts.lengths, self.accelerator, self.config.micro_batch_tokens)

    def _experience(
        self,
        rollouts: Rollouts,
        chosen: Sequence[int],
        texts: Sequence[str],
        groups: Sequence[Sequence[int]],
        kl_coef: float,
    ) -> Experience:
        config, players = self.config, self.players

        def by_function(group: Sequence[int], tokens_BT: Tensor, last_BT: Tensor) -> Tensor:
            assert self.function is not None
            scores = self.function([self.prompts[chosen[i]] for i in group], [texts[i] for i in group])
            return torch.tensor(scores, device=self.accelerator.device)

        scorer = players.score_by_model if self.function is None else by_function
        found = read(
            self.accelerator,
            players.policy,
            players.reference(),
            players.value,
            scorer,
            rollouts,
            groups,
            config.temperature,
        )
        if not bool(torch.isfinite(found["scores"]).all()):
            raise UserError("ppo: a score is not finite; nothing was stepped; look at the reward model")
        return shape(
            found,
            rollouts,
            kl_coef=kl_coef,
            discount=config.discount,
            lam=config.lam,
            missing_eos_penalty=config.missing_eos_penalty,
            score_clip=config.score_clip,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
        )

    def _update(
        self,
        step: int,
        epoch: int,
        number: int,
        minibatch: Sequence[int],
        groups: Sequence[Sequence[int]],
        rollouts: Rollouts,
        experience: Experience,
    ) -> dict[str, float]:
        """One optimizer step of policy and value network on one minibatch; its sums and gradient norms.

        Both gradients are there, and their norms finite, before either network moves.
        """
        config, accelerator, players = self.config, self.accelerator, self.players
        place = f"ppo: step {step + 1}, minibatch {number + 1}"
        n_tokens = float(rollouts.mask_BR[list(minibatch)].sum())
        sums: dict[str, float] = {"n_tokens": n_tokens, "first": float(epoch == 0 and number == 0)}
        value_sums = backward_over(
            accelerator, players.value, groups, lambda g: self._value_loss(g, rollouts, experience), n_tokens
        )
        sums |= gather_sums(accelerator, {f"value/{name}": total for name, total in value_sums.items()})
        policy_learns = step >= config.critic_warmup_steps
        if policy_learns:
            policy_sums = backward_over(
                accelerator,
                players.policy,
                groups,
                lambda g: self._policy_loss(g, rollouts, experience),
                n_tokens,
                last=self.ptx is None,
            )
            sums |= gather_sums(accelerator, {f"policy/{name}": total for name, total in policy_sums.items()})
            if self.ptx is not None:
                count = (step * config.inner_epochs + epoch) * (config.batch_size // config.minibatch_size) + number
                sums["ptx_loss"] = self._ptx(count)
            sums["policy_grad_norm"] = finite_norm(accelerator, players.policy, config.max_grad_norm, place)
        sums["value_grad_norm"] = finite_norm(accelerator, players.value, config.max_grad_norm, place)
        step_with(players.value_optimizer)
        if policy_learns:
            step_with(players.policy_optimizer)
        return sums

    def _policy_loss(self, group: Sequence[int], rollouts: Rollouts, experience: Experience) -> tuple[Tensor, Sums]:
        indices = list(group) or [0]
        tokens_BT, select_BT, _, targets_N = rollouts.batch(indices, self.accelerator.device)
        logprobs_N = selected_logprobs(self.players.policy(tokens_BT, select_BT), targets_N, self.config.temperature)
        mask_BR = rollouts.mask_BR[indices]
        terms = policy_loss(
            logprobs_N.unsqueeze(0),
            experience.logprobs_BR[indices][mask_BR].unsqueeze(0),
            experience.advantages_BR[indices][mask_BR].unsqueeze(0),
            torch.ones_like(logprobs_N, dtype=torch.bool).unsqueeze(0),
            self.config.clip_range,
        )
        return _counted(terms._asdict(), bool(group))

    def _value_loss(self, group: Sequence[int], rollouts: Rollouts, experience: Experience) -> tuple[Tensor, Sums]:
        indices = list(group) or [0]
        tokens_BT, select_BT, _, _ = rollouts.batch(indices, self.accelerator.device)
        values_N = self.players.value(tokens_BT, select_BT)
        mask_BR = rollouts.mask_BR[indices]
        terms = value_loss(
            values_N.unsqueeze(0),
            experience.values_BR[indices][mask_BR].unsqueeze(0),
            experience.returns_BR[indices][mask_BR].unsqueeze(0),
            torch.ones_like(values_N, dtype=torch.bool).unsqueeze(0),
            self.config.value_clip_range,
        )
        return _counted(terms._asdict(), bool(group))

    def _ptx(self, count: int) -> float:
        """Accumulate the gradient of ptx_coef times the mean pretraining loss; that loss in nats a token."""
        assert self.ptx is not None
        rows, config = self.ptx, self.config
        batch = self.ptx_order.batch(count)
        n_targets = sum(rows.weights[index] for index in batch)
        groups = micro_batches(batch, rows.lengths, self.accelerator, config.micro_batch_tokens)

        def loss(group: Sequence[int]) -> tuple[Tensor, Sums]:
            collated = on_device(rows.collate(group or batch[:1]), self.accelerator.device)
            nll, _ = lm_loss(self.players.policy, collated)
            return _counted({"loss_sum": config.ptx_coef * nll, "nll": nll}, bool(group))

        sums = backward_over(self.accelerator, self.players.policy, groups, loss, n_targets)
        return gather_sums(self.accelerator, sums)["nll"] / n_targets

    def _judged(self, chosen: Sequence[int], texts: Sequence[str]) -> dict[str, float]:
        if self.judge is None:
            return {}
        scores = self.judge([self.prompts[index] for index in chosen], texts)
        return {"gold": sum(scores) / len(scores)}


def _counted(terms: dict[str, Tensor], counts: bool) -> tuple[Tensor, Sums]:
    """(loss, further sums); all zero for a micro-batch that only keeps step with other processes."""
    kept = {name: term if counts else term * 0.0 for name, term in terms.items()}
    return kept.pop("loss_sum"), kept
