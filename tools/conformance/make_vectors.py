"""Write vectors.json: inputs and expected values of every detail that is a pure function, from the oracles alone.

    python tools/conformance/make_vectors.py

Neither our code nor torch is imported. Inputs are drawn from a fixed seed and rounded, so that they can be read; in
padding they hold numbers (not zeros) that must not be looked at. docs/conformance.md says how to use the file.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUITE = Path(__file__).resolve().parents[2] / "tests" / "conformance"
sys.path.insert(0, str(SUITE))

import loss_oracles  # noqa: E402
import oracles  # noqa: E402
from vector import Vector, draw, text, vector, without  # noqa: E402

PATH = SUITE / "vectors.json"
N = "https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo"
N_PLUS = "Huang et al. 2024, arXiv 2403.17031"
ZIEGLER = "Ziegler et al. 2019, arXiv 1909.08593, and its code lm-human-preferences"
PAPER = "Ouyang et al. 2022, arXiv 2203.02155"
SCHULMAN = "Schulman 2020, http://joschu.net/blog/kl-approx.html"
GAE = "Schulman et al. 2016, arXiv 1506.02438, Eq 16"
PPO = "Schulman et al. 2017, arXiv 1707.06347, Eq 7"
MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
FULL = [[1, 1, 1, 1], [1, 1, 1, 1]]


def sampling_and_masks() -> list[Vector]:
    """Positions, ends, penalties and log-probabilities."""
    left = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    tokens = [[5, 9, 7, 0, 3, 0], [0, 4, 4, 4, 4, 4], [5, 6, 7, 8, 5, 6], [7, 7, 7, 7, 7, 0]]
    scores = [1.5, -0.5, 0.25, 2.0]
    padded = [[4, 5, 6, 0, 1, 1], [7, 8, 9, 4, 5, 0], [4, 0, 1, 1, 1, 1], [6, 7, 8, 9, 4, 5]]
    same = [[0 if token == 1 else token for token in row] for row in padded[:3]]
    rng = random.Random(1)
    logits = [[[round(rng.uniform(-3, 3), 2) for _ in range(6)] for _ in range(3)] for _ in range(2)]
    chosen = [[0, 3, 5], [2, 2, 1]]
    ends = {"drops_eos": "the end-of-text is masked: the policy never learns to stop",
            "last_eos": "cut after the last end-of-text instead of the first"}  # fmt: skip
    no_temperature = {"temperature_forgotten": "log-probabilities of the unscaled logits: measured KL rises too fast"}

    def at(function: Callable[..., Any], temperature: float) -> Callable[[str], Any]:
        return lambda wrong: function(1.0 if wrong else temperature)

    return [
        vector("position_ids/left_padding", "position_ids", f"{N}; {N_PLUS}, detail 3", {"mask": left},
               lambda w: oracles.position_ids(left, w),
               {"counts_padding": "positions count the padding on the left",
                "begins_at_one": "the first real token has position 1"}),
        vector("truncation_after_first_eos/rows", "response_mask", f"{N_PLUS}, detail 23 (EOS trick)",
               {"tokens": tokens, "eos": 0, "pad": 1}, lambda w: oracles.response_mask(tokens, 0, w), ends),
        vector("pad_is_not_eos/truncation", "response_mask", f"{N_PLUS}, detail 3",
               {"tokens": tokens, "eos": 0, "pad": 0}, lambda w: oracles.response_mask(tokens, 0, w), ends),
        vector("missing_eos_penalty/rows", "missing_eos_penalty",
               f"{N_PLUS}, detail 23; subtracted as in TRL (N+ itself replaces)",
               {"scores": scores, "tokens": tokens, "eos": 0, "penalty": 1.0},
               lambda w: oracles.penalised(scores, tokens, 0, 1.0, w),
               {"replaced": "the score becomes -penalty (N+'s own choice; not a bug)",
                "added": "unfinished answers are rewarded",
                "eos_in_last_place_not_seen": "an answer whose last possible token is the end-of-text counts as cut",
                "replaced+eos_in_last_place_not_seen": "both"}),
        vector("score_at_eos/pad_apart", "score_places", f"{N_PLUS}, detail 3; {N}",
               {"tokens": padded, "lengths": [4, 6, 2, 6], "prompt": 1, "pad": 1, "eos": 0},
               lambda w: oracles.score_places([4, 6, 2, 6], w),
               {"one_before": "read at the token before the last", "last_column": "read at the last column, padding"}),
        vector("pad_is_not_eos/pad_equals_eos", "score_places", f"{N_PLUS}, detail 3",
               {"tokens": same, "lengths": [4, 6, 2], "prompt": 1, "pad": 0, "eos": 0},
               lambda w: oracles.score_places([4, 6, 2], w),
               {"one_before": "padding is told by its id, so the end-of-text is taken for padding",
                "last_column": "read at the last column"}),
        vector("logits_predict_the_next_token/places", "response_places", f"{N_PLUS} code; {N}",
               {"prompt": 3, "response": 4}, lambda w: oracles.response_places(3, 4, w),
               {"not_shifted": "logits read at the token itself, not before it",
                "one_less": "the last response token is left out"}),
        *(vector(f"temperature_inside_logprobs/{t}", "token_logprobs", N,
                 {"logits": logits, "tokens": chosen, "temperature": t},
                 at(lambda at: oracles.logprobs(logits, chosen, at), t), no_temperature if t != 1 else {})
          for t in (0.7, 1.0, 2.0)),
        vector("entropy/temperature_0.7", "entropy", f"{N}; lm-human-preferences",
               {"logits": logits, "temperature": 0.7},
               at(lambda at: oracles.entropies(logits, at), 0.7), no_temperature),
    ]  # fmt: skip


def kl_and_rewards() -> list[Vector]:
    """Estimators, rewards per token, the controller."""
    new, ref = draw(2, 3, 5, -3, -0.1), draw(3, 3, 5, -3, -0.1)
    near = [[round(x + d, 5) for x, d in zip(row, deltas, strict=True)]
            for row, deltas in zip(new, draw(4, 3, 5, -0.05, 0.05), strict=True)]  # fmt: skip
    scores = [1.25, -0.75, 2.5]
    turned = {"reversed": "ref against policy: the sign of k1 is turned"}
    found = [
        vector(f"kl_{e}/{name}", "kl", SCHULMAN, {"logprobs": new, "ref_logprobs": other, "mask": MASK, "estimator": e},
               lambda w, e=e, other=other: oracles.kl(new, other, MASK, w or e),
               turned | ({"k2": "the biased estimator"} if e == "k3" and name == "far" else {}))
        for e in ("k1", "k3") for name, other in (("far", ref), ("near", near))
    ]  # fmt: skip
    for name, coefficient in (("plain", 0.1), ("strong", 2.0)):
        found.append(
            vector(f"token_rewards/{name}", "token_rewards", f"{ZIEGLER}, section 2; {PAPER}, Eq 2",
                   {"scores": scores, "logprobs": new, "ref_logprobs": ref, "mask": MASK, "kl_coef": coefficient},
                   lambda w, c=coefficient: oracles.token_rewards(scores, new, ref, MASK, c, w),
                   {"kl_sign": "distance from the reference is rewarded",
                    "score_everywhere": "every token gets the score",
                    "score_at_first": "the first token gets the score",
                    "score_in_last_column": "the last column gets the score, which for short answers is padding",
                    "kl_once": "the KL of the whole answer is charged at its last token"})
        )  # fmt: skip
    cases = {"far_above": 12.0, "far_below": 1.0, "a_little_above": 6.6, "on_target": 6.0}
    for name, measured in cases.items():
        broken = {"other_way": "the coefficient falls when KL is too high",
                  "no_horizon": "the error isn't scaled by episodes / horizon"}  # fmt: skip
        broken |= {"not_clipped": "the error isn't held within 0.2"} if name.startswith("far") else {}
        found.append(
            vector(f"adaptive_kl/{name}", "adapt_kl", f"{ZIEGLER}, section 2.2",
                   {"kl_coef": 0.15, "kl": measured, "target": 6.0, "episodes": 512, "horizon": 10_000},
                   lambda w, m=measured: oracles.adapted(0.15, m, 6.0, 512, 10_000, w),
                   {} if name == "on_target" else broken)
        )  # fmt: skip
    return found


def advantages() -> list[Vector]:
    """GAE and whitening."""
    rewards, values = draw(5, 3, 5), draw(6, 3, 5)
    found = []
    for gamma, lam in ((1.0, 0.0), (1.0, 0.95), (1.0, 1.0), (0.9, 0.95)):
        broken = {"bootstraps_from_padding": "the value in padding counts as the next state's",
                  "no_next_value": "delta has no gamma V(next)"}  # fmt: skip
        broken |= {"lambda_forgotten": "lambda is 1"} if lam < 1 else {}
        broken |= {"gamma_forgotten": "gamma is 1"} if gamma < 1 else {}
        found.append(
            vector(f"gae/gamma_{gamma:g}_lambda_{lam:g}", "gae", GAE,
                   {"rewards": rewards, "values": values, "mask": MASK, "gamma": gamma, "lam": lam},
                   lambda w, g=gamma, lam=lam: oracles.gae(rewards, values, MASK, g, lam, w), broken)
        )  # fmt: skip
    x = draw(7, 3, 5, 1.0, 5.0)
    for name, shift, mask in (("advantages", True, MASK), ("rewards", False, MASK), ("no_padding", True, FULL)):
        rows = x if mask is MASK else draw(8, 2, 4, 1.0, 5.0)
        broken = {"mean_added_back": "the mean is added back: it is not 0"} if shift else {
            "mean_removed": "the mean is taken away: what reward a step has as a whole is lost"}  # fmt: skip
        first = next(iter(broken))
        broken |= {f"{first}+unbiased_variance": "both",
                   "unbiased_variance": "divided by n - 1 (TensorFlow's moments, and so Ziegler's, divide by n)",
                   "row_by_row": "each answer is whitened by itself"}  # fmt: skip
        broken |= {"padding_counted": "padding enters mean and variance"} if mask is MASK else {}
        found.append(
            vector(f"whiten_{'advantages' if shift else 'rewards'}/{name}", "whiten", f"{ZIEGLER}; {N}",
                   {"values": rows, "mask": mask, "shift_mean": shift},
                   lambda w, rows=rows, mask=mask, shift=shift: oracles.whiten(rows, mask, shift, w), broken)
        )  # fmt: skip
    returns = draw(15, 1, 6)[0]
    found.append(
        vector("rloo_baseline/two_prompts", "leave_one_out", "Ahmadian et al. 2024, arXiv 2402.14740, section 3.2",
               {"returns": returns, "k": 3}, lambda w: oracles.leave_one_out(returns, 3, w),
               {"own_return_counted": "the baseline contains the answer's own return",
                "other_prompts_counted": "the baseline is the mean over all prompts"})
    )  # fmt: skip
    return found


def losses() -> list[Vector]:
    """Policy and value losses and what is logged beside them."""
    old = draw(9, 3, 5, -3, -0.5)
    deltas = draw(10, 3, 5, -0.5, 0.5)
    new = [[round(o + d, 4) for o, d in zip(*rows, strict=True)] for rows in zip(old, deltas, strict=True)]
    weights, returns, old_values = draw(11, 3, 5), draw(12, 3, 5), draw(13, 3, 5)
    values = [
        [round(o + 1.2 * d, 3) for o, d in zip(*rows, strict=True)] for rows in zip(old_values, deltas, strict=True)
    ]
    padding = {"padding_counted": "padding enters the means"}
    policy = {"sign": "the policy goes downhill", "optimistic": "the smaller of the two losses",
              "not_clipped": "no clipping", "clipped_only": "the clipped loss alone"}  # fmt: skip
    value = {"optimistic": "the smaller of the two errors", "not_clipped": "no clipping",
             "half_forgotten": "without the half"}  # fmt: skip

    def of_policy(name: str, p: Any, q: Any, a: Any, mask: Any, broken: dict[str, str]) -> Vector:
        inputs = {"logprobs": p, "old_logprobs": q, "advantages": a, "mask": mask, "clip_range": 0.2}
        return vector(f"clipped_policy_loss/{name}", "policy_loss", PPO, inputs,
                      lambda w: loss_oracles.policy_loss(p, q, a, mask, 0.2, w), broken)  # fmt: skip

    def of_value(name: str, v: Any, o: Any, r: Any, mask: Any, broken: dict[str, str]) -> Vector:
        inputs = {"values": v, "old_values": o, "returns": r, "mask": mask, "clip_range": 0.2}
        return vector(f"clipped_value_loss/{name}", "value_loss", f"{ZIEGLER} (train_policy.py); {N}", inputs,
                      lambda w: loss_oracles.value_loss(v, o, r, mask, 0.2, w), broken)  # fmt: skip

    logs = [round(x, 6) for x in (0.4054651, 0.4054651, -0.6931472, -0.6931472, 0.0953102)]
    at_bound = [[0.1823215568, 0.1823215568, -0.2231435513, -0.2231435513]]
    return [
        of_policy("ragged", new, old, weights, MASK, policy | padding),
        # Ratios 1.5, 1.5, 0.5, 0.5, 1.1: beyond the bounds on either side, with either sign of the advantage.
        of_policy("beyond_the_bounds", [logs], [[0.0] * 5], [[1.0, -1.0, 1.0, -2.0, 2.0]], [[1] * 5], policy),
        # Ratios 1.2 and 0.8 to ten digits. The gradient is one-sided there, so only its size inside is asked for.
        without(of_policy("at_the_bounds", at_bound, [[0.0] * 4], [[1.0, -1.0, 1.0, -1.0]], [[1] * 4], {}), "gradient",
                "clipfrac"),
        of_policy("first_minibatch", old, old, weights, MASK, {"sign": policy["sign"]} | padding),
        of_value("ragged", values, old_values, returns, MASK, value | padding),
        of_value("beyond_the_bounds", [[1.0, 1.0, 0.1, -1.0]], [[0.0] * 4], [[2.0, 0.0, 1.0, -2.0]], [[1] * 4], value),
        without(of_value("at_the_bounds", [[0.2, -0.2]], [[0.0, 0.0]], [[1.0, 1.0]], [[1, 1]],
                         {"half_forgotten": value["half_forgotten"]}), "gradient", "clipfrac"),
        vector("metrics_over_real_tokens/mean", "token_mean", "sums before means",
               {"values": returns, "mask": MASK}, lambda w: loss_oracles.token_mean(returns, MASK, w),
               {"padding_counted": "padding enters the mean", "mean_of_row_means": "short answers weigh more"}),
        vector("explained_variance/ragged", "explained_variance", "lm-human-preferences, val/var_explained",
               {"values": values, "returns": returns, "mask": MASK},
               lambda w: loss_oracles.explained_variance(values, returns, MASK, w),
               {"offset_forgiven": "1 - var(error) / var(returns): a constant error is not charged"}),
    ]  # fmt: skip


def reward_model() -> list[Vector]:
    """The ranking loss, accuracy and normalisation."""
    eq1 = f"{PAPER}, section 3.5, Eq 1"
    whole = {
        "sum_over_pairs": "the sum of a prompt's pairs instead of their mean",
        "worst_first": "rank 1 is the worst",
    }

    def of(name: str, scores: Any, ranks: Any, more: dict[str, str]) -> Vector:
        return vector(f"ranking_loss/{name}", "ranking_loss", eq1, {"scores": scores, "ranks": ranks},
                      lambda w: loss_oracles.ranking_loss(scores, ranks, w), more)  # fmt: skip

    four, pooled = [[0.5, -1.25, 2.0, 0.1]], {"pairs_pooled": "every pair weighs the same, so long rankings weigh more"}
    chosen, rejected = [1.0, 0.0, 2.0, 5.0, -1.0], [0.0, 1.0, 2.0, -5.0, -2.0]
    flat, members = draw(14, 1, 9, -4.0, 9.0)[0], draw(16, 3, 4)
    cautious = {"bonus": "spread is rewarded", "unbiased_variance": "divided by n - 1 (a choice: lambda has no unit)"}
    return [
        of("pair", [[0.3, -0.4]], [[1, 2]], {"worst_first": whole["worst_first"]}),
        of("four_answers", four, [[2, 4, 1, 3]], whole),
        of("ties", four, [[1, 2, 2, 1]], whole | {"ties_counted": "#pairs is C(K, 2), ties included"}),
        of("prompts_of_unequal_size", [[0.5, -1.25, 2.0, 0.1], [1.0, 0.25], [0.0, 0.7, -0.7]],
           [[2, 4, 1, 3], [2, 1], [1, 3, 2]], whole | pooled),
        vector("pair_accuracy/with_a_tie", "pair_accuracy", "a tie is worth a coin's half",
               {"chosen": chosen, "rejected": rejected}, lambda w: loss_oracles.accuracy(chosen, rejected, w),
               {"ties_right": "a tie counts as right", "ties_wrong": "a tie counts as wrong"}),
        vector("reward_normalisation/scores", "normalisation", f"{ZIEGLER}; {N}", {"scores": flat},
               lambda w: loss_oracles.normalisation(flat, w),
               {"unbiased_variance": "divided by n - 1", "bias_not_scaled": "the mean is subtracted after the gain"}),
        *(vector(f"ensemble/{rule}", "ensemble", "Coste et al. 2023, arXiv 2310.02743; standard deviation for variance",
                 {"scores": members, "rule": rule, "coef": 0.5},
                 lambda w, rule=rule: loss_oracles.ensemble(members, rule, 0.5, w),
                 cautious if rule == "mean_std" else {})
          for rule in ("mean", "mean_std", "worst")),
    ]  # fmt: skip


def training() -> list[Vector]:
    """Averaged weights and Adam's epsilon."""
    weights, gradients = [1.0, 2.0, 4.0, 3.0], [2e-5, -1e-5, 4e-5]
    arguments = (0.01, 0.9, 0.95, 1e-5)
    return [
        vector("ema/three_steps", "ema", f"{PAPER}, C.4 (decay 0.992)", {"weights": weights, "decay": 0.9},
               lambda w: loss_oracles.average(weights, 0.9, w),
               {"swapped": "decay and 1 - decay are swapped", "starts_at_zero": "begins with 0, not with the weights"}),
        vector("adam_eps/three_steps", "adam", f"{N}, section on Adam; {N_PLUS} code",
               {"gradients": gradients, "learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-5},
               lambda w: loss_oracles.adam(gradients, 0.01, 0.9, 0.95, 1e-8) if w == "eps_1e-8" else
               loss_oracles.adam(gradients, *arguments, w),
               {"eps_inside_root": "sqrt(v + eps)", "no_bias_correction": "moments are not corrected",
                "eps_1e-8": "PyTorch's default epsilon: far larger first steps"}),
    ]  # fmt: skip


def made() -> dict[str, Any]:
    """The whole file."""
    groups = (sampling_and_masks, kl_and_rewards, advantages, losses, reward_model, training)
    return {
        "version": 1,
        "about": "Details of RLHF as inputs and expected values; docs/conformance.md says how to read them.",
        "vectors": [found for group in groups for found in group()],
    }


if __name__ == "__main__":
    PATH.write_text(text(made()), encoding="utf-8")
