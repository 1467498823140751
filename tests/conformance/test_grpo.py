"""Details of GRPO and of what came after it, one test each.

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300); Dr. GRPO: Liu et al. 2025 (arXiv 2503.20783); DAPO: Yu et al. 2025
(arXiv 2503.14476); GSPO: Zheng et al. 2025 (arXiv 2507.18071); Schulman 2020 (estimators k1, k2 and k3).

The gradients of the KL terms are taken on a policy that is small enough to enumerate: three tokens, answers of at most
two. Instead of samples, all answers are taken, each weighed with its probability under the policy that sampled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracles
import pytest
import shipped
import torch
from compare import agree
from processes import in_processes, script
from safetensors.torch import load_file
from torch import Tensor, nn

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.reward import kl
from gptlife.reward.advantage import group_normalised
from gptlife.stages import grpo
from gptlife.stages.rl import episodes

EOS, START, LONGEST = 0, 3, 2
ANSWERS = [[0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]
"""All that a policy of three tokens, the first of which ends an answer, can say in two tokens."""
AGGREGATIONS = ("sequence", "token", "constant")


def algorithm(**fields: Any) -> grpo.GRPO:
    """GRPO on the seven answers to one prompt, without clipping unless it is asked for."""
    given = {"answers_per_prompt": 7, "batch_size": 7, "minibatch_size": 7, "max_new_tokens": LONGEST, "prompts": "x"}
    return grpo.GRPO(decode(grpo.GRPOConfig, {"clip_range": 50.0, **given, **fields}, "grpo"))


class Table(nn.Module):
    """A policy: for the prompt, and after token 1 and token 2, the logits of the three tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))

    def forward(self, inputs: dict[str, Tensor], select_BT: Tensor) -> Tensor:
        """Logits of the selected positions, as a reader gives them."""
        return self.logits[inputs["input_ids"][select_BT] % START]

    def logprobs(self) -> Tensor:
        """(state, token)."""
        return self.logits.log_softmax(-1)

    def of_answers(self) -> tuple[Tensor, Tensor]:
        """logprobs_BR of all answers, 0 on padding, and their probabilities."""
        table = torch.zeros(7, LONGEST, dtype=torch.float64)
        for row, tokens in enumerate(ANSWERS):
            for step, (state, token) in enumerate(zip([0, *tokens], tokens, strict=False)):
                table[row, step] = self.logprobs()[state, token].detach()
        return table, table.sum(1).exp()


PI, OLD, REF = Table(1), Table(2), Table(3)


def rollouts() -> episodes.Rollouts:
    """All answers as the answers to one prompt."""
    mask_BR = torch.tensor([[step < len(row) for step in range(LONGEST)] for row in ANSWERS])
    finished_B = torch.tensor([row[-1] == EOS for row in ANSWERS])
    return episodes.Rollouts([Encoded.prompt([START])] * 7, ANSWERS, finished_B, torch.zeros(7, LONGEST), mask_BR)


def experience_of(
    chosen: grpo.GRPO, old: Table, scores_B: Tensor | None = None, kl_coef: float = 0.3
) -> episodes.Experience:
    """What GRPO makes of all answers, sampled from `old`; scores are 0 unless they are given."""
    scores_B = torch.zeros(7, dtype=torch.float64) if scores_B is None else scores_B
    readings = shipped.readings_of(
        rollouts().mask_BR, logprobs_BR=old.of_answers()[0], ref_logprobs_BR=REF.of_answers()[0], scores_B=scores_B
    )
    return chosen.experience(readings, rollouts(), kl_coef)


SCORES = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, -0.5, 1.0], dtype=torch.float64)


def gradient(
    chosen: grpo.GRPO,
    policy: Table,
    experience: episodes.Experience,
    rows: Sequence[int] = range(7),
    unweighted: bool = False,
) -> Tensor:
    """Of the loss's sum over some answers; `unweighted` takes the sampled log-probabilities for the policy's own."""
    batch = episodes.minibatch_of(rollouts(), experience, rows, shipped.CPU)
    if unweighted:
        batch = replace(batch, logprobs_N=batch.logprobs(policy, 1.0).detach())
    terms = chosen.losses(0, 0.3)["policy"](policy, batch)
    (found,) = torch.autograd.grad(terms["loss_sum"], policy.logits)
    return found


def expected_gradient(policy: Table, old: Table, unweighted: bool = False, **fields: Any) -> Tensor:
    """In expectation over answers from `old`: each weighs its probability. Scores are equal, so only KL teaches."""
    chosen = algorithm(**{"scale_by_std": False, "aggregation": "constant", "missing_eos_penalty": 0.0, **fields})
    experience = experience_of(chosen, old)
    assert experience.weights_BR is not None
    weighed = replace(experience, weights_BR=experience.weights_BR * old.of_answers()[1].unsqueeze(1))
    return gradient(chosen, policy, weighed, unweighted=unweighted)


def exact_gradient(policy: Table, objective: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """0.3 times the gradient of `objective(log pi, log ref)`."""
    (found,) = torch.autograd.grad(0.3 * objective(policy.logprobs(), REF.logprobs().detach()), policy.logits)
    return found


def visits(old: Table) -> Tensor:
    """How often `old` comes into each state, in an answer."""
    first = old.logprobs()[0].exp().detach()
    return torch.stack([torch.ones((), dtype=torch.float64), first[1], first[2]])


def refused(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    with pytest.raises(AssertionError):
        agree(found, expected, tolerance)


def test_group_advantage() -> None:
    """DeepSeekMath 4.1.2, by hand: 1, 2, 3, 6 lie -2, -1, 0, 3 from their mean; their deviation is (14 / 3)^0.5."""
    returns_B = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    spread = (14 / 3) ** 0.5
    by_hand = [x / (spread + 0.01) for x in (-2.0, -1.0, 0.0, 3.0)] + [0.0] * 4
    found = group_normalised(returns_B, 4, scale=True, eps=0.01)
    agree(found, by_hand)
    # To the last bit: the mean of three times 0.7 is not 0.7, and what is left would be divided by a small eps.
    equal_B = torch.full((3,), 0.7, dtype=torch.float64)
    assert float((equal_B - equal_B.mean()).abs().max()) > 0
    assert group_normalised(equal_B, 3, scale=True, eps=1e-4).tolist() == [0.0] * 3
    for wrong in ((14 / 4) ** 0.5 + 0.01, spread, (14 / 3 + 0.01) ** 0.5):
        refused(found, [x / wrong for x in (-2.0, -1.0, 0.0, 3.0)] + [0.0] * 4)
    agree(group_normalised(returns_B, 4, scale=False, eps=0.01), [-2.0, -1.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    refused(found, oracles.whiten([returns_B.tolist()], [[1] * 8], True)[0])  # twin: over all prompts
    with pytest.raises(ValueError, match="k must be"):
        group_normalised(returns_B, 1, scale=True, eps=0.01)


def test_zero_variance_groups_are_logged() -> None:
    """DAPO 3.2: a group of equal returns has no gradient; how many there are is in the log."""
    mask_BR = torch.ones(8, 2).bool()
    chosen = algorithm(answers_per_prompt=4, batch_size=8, minibatch_size=8)

    def check(scores: list[float], share: float) -> None:
        readings = shipped.readings_of(mask_BR, scores_B=torch.tensor(scores, dtype=torch.float64))
        experience = chosen.experience(readings, shipped.rollouts_of(mask_BR), 0.3)
        assert experience.metrics["zero_variance_groups"] == share
        agree(experience.advantages_BR[4:], [[0.0, 0.0]] * 4)

    check([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0], 0.5)
    with pytest.raises(AssertionError):
        check([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 4.0], 0.5)


def test_truncated_answers_masked() -> None:
    """DAPO 3.4: an answer that was cut off has a return but no gradient; the others' is as if it were not there."""
    kept = [row for row, tokens in enumerate(ANSWERS) if tokens[-1] == EOS]
    assert len(kept) == 3
    for aggregation in AGGREGATIONS:
        masked, plain = (algorithm(mask_truncated=on, aggregation=aggregation) for on in (True, False))
        experience, whole = experience_of(masked, OLD, SCORES), experience_of(plain, OLD, SCORES)
        agree(experience.advantages_BR, whole.advantages_BR)
        found = gradient(masked, PI, experience) / masked.denominator(rollouts(), experience, range(7))
        agree(found, gradient(plain, PI, whole, kept) / plain.denominator(rollouts(), whole, kept), 1e-7)
        refused(found, gradient(plain, PI, whole) / plain.denominator(rollouts(), whole, range(7)))
        assert experience.metrics["masked_share"] == pytest.approx(4 / 7)
        assert masked.denominator(rollouts(), experience, [2, 3]) >= 1.0  # none counts: 0 over 1
        agree(gradient(masked, PI, experience, [2, 3]), [[0.0] * 3] * 3)


def test_truncated_answers_penalised() -> None:
    """The other way (Huang et al. 2024, detail 23): what was cut off is worth `missing_eos_penalty` less."""
    returns = experience_of(algorithm(missing_eos_penalty=1.5), OLD, SCORES).returns_BR[:, 0]
    agree(returns, oracles.penalised(SCORES.tolist(), ANSWERS, EOS, 1.5))
    refused(returns, SCORES)


def test_aggregation_denominators() -> None:
    """DeepSeekMath Eq 3, DAPO Eq 12, Dr. GRPO: each divides by a count of the whole minibatch, whatever the split."""
    lengths = [len(tokens) for tokens in ANSWERS]

    def by_hand(aggregation: str) -> float:
        experience = experience_of(algorithm(), OLD, SCORES)
        of_answer = []
        for new, old, advantage, n in zip(PI.of_answers()[0].tolist(), OLD.of_answers()[0].tolist(),
                                          experience.advantages_BR[:, 0].tolist(), lengths, strict=True):  # fmt: skip
            of_answer.append(sum(-advantage * math.exp(p - q) for p, q in zip(new[:n], old[:n], strict=True)))
        if aggregation == "sequence":
            return sum(total / n for total, n in zip(of_answer, lengths, strict=True)) / 7
        return sum(of_answer) / (sum(lengths) if aggregation == "token" else 7 * LONGEST)

    def loss(aggregation: str, parts: Sequence[Sequence[int]], own_denominators: bool = False) -> float:
        chosen = algorithm(aggregation=aggregation, kl_coef=0.0)
        experience, total = experience_of(chosen, OLD, SCORES, 0.0), 0.0
        for part in parts:
            batch = episodes.minibatch_of(rollouts(), experience, part, shipped.CPU)
            share = chosen.denominator(rollouts(), experience, part if own_denominators else range(7))
            total += float(chosen.losses(0, 0.0)["policy"](PI, batch)["loss_sum"].detach()) / share
        return total

    split = [[0, 2, 5], [1], [3, 4, 6]]
    for aggregation in AGGREGATIONS:
        agree(loss(aggregation, [range(7)]), by_hand(aggregation), 1e-6)
        agree(loss(aggregation, split), by_hand(aggregation), 1e-6)
        refused(loss(aggregation, split, own_denominators=True) / 3, by_hand(aggregation))
        for other in {*AGGREGATIONS} - {aggregation}:
            refused(loss(aggregation, [range(7)]), by_hand(other))


def at_ratios(chosen: grpo.GRPO, ratios: Sequence[float], advantages: Sequence[float]) -> dict[str, Tensor]:
    """The loss's terms where every token of an answer has a given ratio (the last one's its square root)."""
    new_BR, mask_BR = PI.of_answers()[0], rollouts().mask_BR
    old_BR = new_BR - torch.tensor(ratios, dtype=torch.float64).log().unsqueeze(1)
    experience = experience_of(chosen, PI, SCORES)
    changed = replace(
        experience,
        readings=replace(experience.readings, logprobs_BR=torch.where(mask_BR, old_BR, 0)),
        advantages_BR=torch.tensor(advantages, dtype=torch.float64).unsqueeze(1).expand(7, LONGEST),
    )
    batch = episodes.minibatch_of(rollouts(), changed, range(7), shipped.CPU)
    return dict(chosen.losses(0, 0.0)["policy"](PI, batch))


def test_clip_higher() -> None:
    """DAPO Eq 10: good tokens may grow to 1 + 0.28, bad ones shrink to 1 - 0.2. One token: what it earns, by hand."""
    ratios, signs = [1.25, 1.5, 1.5, 0.5, 0.9, 0.5, 1.0], [1, 1, -1, -1, -1, 1, 1]
    earned = [1.25, 1.28, -1.5, -0.8, -0.9, 0.5, 1.0]

    def check(**fields: Any) -> None:
        for ratio in ("token", "sequence"):  # all tokens of an answer have its ratio: the same either way
            terms = at_ratios(algorithm(clip_range=0.2, kl_coef=0.0, ratio=ratio, **fields), ratios, signs)
            agree(float(terms["loss_sum"].detach()), -sum(earned), 1e-6)

    check(clip_range_high=0.28)
    for wrong in ({}, {"clip_range_high": 0.2}, {"clip_range_high": 0.5}):
        with pytest.raises(AssertionError):
            check(**wrong)


def test_token_and_sequence_ratio() -> None:
    """GSPO Eq 7: a token's pi / pi_old, or one for the answer: their geometric mean. Clipped, by brute force."""
    new, old = PI.of_answers()[0].tolist(), OLD.of_answers()[0].tolist()
    advantages = experience_of(algorithm(), OLD, SCORES).advantages_BR[:, 0].tolist()

    def clipped(a: float, ratio: float) -> float:
        return max(-a * ratio, -a * min(max(ratio, 0.9), 1.1))

    def by_hand(kind: str) -> float:
        total = 0.0
        for p, q, a, tokens in zip(new, old, advantages, ANSWERS, strict=True):
            n = len(tokens)
            if kind == "token":
                total += sum(clipped(a, math.exp(p[t] - q[t])) for t in range(n)) / n
            else:
                total += clipped(a, math.exp(sum(p[t] - q[t] for t in range(n)) / (n if kind == "sequence" else 1)))
        return total

    def found(kind: str) -> float:
        chosen = algorithm(ratio=kind, clip_range=0.1, kl_coef=0.0)
        batch = episodes.minibatch_of(rollouts(), experience_of(chosen, OLD, SCORES), range(7), shipped.CPU)
        return float(chosen.losses(0, 0.0)["policy"](PI, batch)["loss_sum"].detach())

    for kind, others in (("token", ("sequence",)), ("sequence", ("token", "product"))):
        agree(found(kind), by_hand(kind), 1e-6)
        for other in others:
            refused(found(kind), by_hand(other))
    with pytest.raises(UserError, match="aggregation"):  # a ratio of answers has no sum over tokens
        algorithm(ratio="sequence", aggregation="token")


def kl_of_answers(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    """KL(pi || ref) of whole answers, by all of them."""
    total = torch.zeros((), dtype=torch.float64)
    for tokens in ANSWERS:
        steps = list(zip([0, *tokens], tokens, strict=False))
        p, q = (sum((table[step] for step in steps), torch.zeros(())) for table in (log_pi, log_ref))
        total = total + p.exp() * (p - q)
    return total


def test_k1_in_reward_gradient() -> None:
    """k1 in the reward has the gradient of KL(pi || ref) of whole answers; off-policy with the weight pi / old."""
    fields = {"kl_penalty": "k1_in_reward"}
    agree(expected_gradient(PI, PI, **fields), exact_gradient(PI, kl_of_answers), 1e-9)
    refused(expected_gradient(OLD, PI, **fields), exact_gradient(OLD, kl_of_answers))  # the policy that sampled is PI
    # Dr. GRPO 3.1: a mean over each answer's tokens is another gradient, one that likes length.
    refused(expected_gradient(PI, PI, aggregation="sequence", **fields), exact_gradient(PI, kl_of_answers))

    # Off-policy the reward is that of the policy that sampled, and each action is weighed where it was taken.
    p, ref = OLD.logprobs().detach(), REF.logprobs().detach()
    cost = p - ref  # (state, token)
    to_come = torch.stack([torch.zeros(()).double(), *(p[1:].exp() * cost[1:]).sum(1)])  # after token 0 nothing comes

    def surrogate(log_pi: Tensor, _: Tensor) -> Tensor:
        first = (log_pi[0].exp() * (cost[0] + to_come)).sum()
        later = [p[0, s].exp() * (log_pi[s].exp() * (cost[0, s] + cost[s])).sum() for s in (1, 2)]
        return first + later[0] + later[1]

    # The group's mean is a constant that each action's weight multiplies: its gradient vanishes, state by state.
    agree(expected_gradient(PI, OLD, **fields), exact_gradient(PI, surrogate), 1e-9)
    refused(expected_gradient(PI, OLD, unweighted=True, **fields), exact_gradient(PI, surrogate))


def of_states(old: Table, reverse: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """KL at each state that `old` visits: of pi from ref, or (`reverse`) of ref from pi."""

    def objective(log_pi: Tensor, log_ref: Tensor) -> Tensor:
        one, other = (log_ref, log_pi) if reverse else (log_pi, log_ref)
        return (visits(old) * (one.exp() * (one - other)).sum(1)).sum()

    return objective


def kl_in_loss(penalty: str, reverse: bool) -> None:
    """On-policy and off-policy; twins: without the weight, and the other direction."""
    for old in (PI, OLD):
        found = expected_gradient(PI, old, kl_penalty=penalty)
        agree(found, exact_gradient(PI, of_states(old, reverse)), 1e-9)
        refused(found, exact_gradient(PI, of_states(old, not reverse)))
    exact = exact_gradient(PI, of_states(OLD, reverse))
    refused(expected_gradient(PI, OLD, kl_penalty=penalty, unweighted=True), exact)


def test_k2_in_loss_gradient() -> None:
    """Half the squared log ratio has the gradient of KL(pi || ref) at the states visited, on- and off-policy."""
    new, ref = torch.tensor([[-1.0, -0.5]]), torch.tensor([[-3.0, -0.5]])
    agree(kl.k2(new, ref), oracles.kl(new.tolist(), ref.tolist(), [[1, 1]], "k2"))
    refused(kl.k2(new, ref), oracles.kl(new.tolist(), ref.tolist(), [[1, 1]], "k3"))
    kl_in_loss("k2_in_loss", reverse=False)


def test_k3_in_loss_gradient() -> None:
    """k3, unbiased as a value, has the gradient of the other direction: KL(ref || pi) at the states visited."""
    kl_in_loss("k3_in_loss", reverse=True)


def test_one_answer_a_prompt_is_refused() -> None:
    """Alone in its group an answer has no baseline."""
    assert algorithm(answers_per_prompt=2, batch_size=8, minibatch_size=8).answers_per_prompt == 2
    with pytest.raises(UserError, match="answers_per_prompt"):
        algorithm(answers_per_prompt=1)


RUN: dict[str, Any] = {
    "answers_per_prompt": 4, "steps": 2, "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 6, "warmup_steps": 0,
    "kl_coef": 0.3, "ema": None, "learning_rate": 0.02, "max_grad_norm": 1e9, "sample_every": 1, "temperature": 0.8,
}  # fmt: skip


def test_group_statistics_over_micro_batches(
    world: Any, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is normalised by all its answers, however minibatches and micro-batches cut the step."""

    def descent(groups: Any, lr: float, **_: Any) -> torch.optim.SGD:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=lr)

    monkeypatch.setattr(torch.optim, "AdamW", descent)

    def weights(name: str, **fields: Any) -> dict[str, Tensor]:
        output, given = tmp_path / name, {**RUN, "prompts": str(world.prompts), "steps": 1, **fields}
        run(grpo.STAGE, given, output, policy=world.policy, reward=world.reward)
        (line,) = (json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines())
        assert (line["kl"], line["first_ratio"], line["first_approx_kl"]) == (0.0, 1.0, 0.0)
        return load_file(str(output / "model.safetensors"))

    whole = weights("whole")

    def check(found: dict[str, Tensor]) -> None:
        for name, expected in whole.items():
            assert float((found[name] - expected).abs().max()) <= 1e-6, name

    check(weights("micro", micro_batch_tokens=1, generation_batch_size=3))
    with pytest.raises(AssertionError):  # twin: other groups are another gradient
        check(weights("other", answers_per_prompt=2))
    weights("sequence", ratio="sequence")


TWINS = """\
group_normalised = advantage.group_normalised
def each_its_own(returns_B, k, **options):
    parts = [group_normalised(returns_B[rank::2], k // 2, **options) for rank in (0, 1)]
    return torch.stack(parts, 1).flatten()
advantage.group_normalised = each_its_own
go("alone")
"""
SCRIPT = script("grpo", "GRPO", TWINS)


@pytest.mark.slow
def test_group_statistics_over_processes(world: Any, tmp_path: Path) -> None:
    """A group's answers are sampled by several processes, and are normalised together: advantages and weights."""
    fields = {**RUN, "prompts": str(world.prompts), "device": "cpu", "track": []}
    inputs = {"policy": str(world.policy), "reward": str(world.reward)}
    in_processes(1, SCRIPT, fields, inputs, tmp_path / "one")
    in_processes(2, SCRIPT, fields, inputs, tmp_path / "two", "twins")

    def check(name: str) -> None:
        one, two = tmp_path / "one" / "processes", tmp_path / "two" / name
        expected = json.loads((one / "advantages-0.json").read_text(encoding="utf-8"))[0]
        for rank in (0, 1):
            agree(json.loads((two / f"advantages-{rank}.json").read_text(encoding="utf-8"))[0], expected, 1e-4)
        found, whole = (load_file(str(path / "model.safetensors")) for path in (two, one))
        for tensor, value in whole.items():
            assert float((found[tensor] - value).abs().max()) <= 1e-6, tensor

    check("processes")
    with pytest.raises(AssertionError):
        check("alone")
