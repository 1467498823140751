"""RLHF's formulas in plain Python floats, one token at a time, and the ways in which they are often got wrong.

Nothing here is shared with the code under test: no tensor, no broadcasting, no formula of ours. Lists are rows of
tokens, padded on the right; a mask is 1 at real tokens. Every function that takes a `wrong` argument gives the right
answer by default and a named mistake otherwise: these are the `broken` values of vectors.json and the tests' twins.

Results are given at real tokens only; at padding they are None, which `compare` takes as equal to anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Row = Sequence[float]
Rows = Sequence[Row]
Found = list[list[float | None]]


def length(mask: Sequence[int]) -> int:
    """Real tokens of a row padded on the right."""
    return sum(mask)


def real(rows: Rows, mask: Sequence[Sequence[int]]) -> list[float]:
    """The entries at real tokens."""
    return [x for row, marks in zip(rows, mask, strict=True) for x, here in zip(row, marks, strict=True) if here]


def each(function: Callable[..., float], mask: Sequence[Sequence[int]], *tables: Rows) -> Found:
    """`function` of the entries at every real token."""
    found: Found = []
    for b, marks in enumerate(mask):
        found.append([function(*(table[b][t] for table in tables)) if here else None for t, here in enumerate(marks)])
    return found


# Tokens and masks


def response_mask(tokens: Sequence[Sequence[int]], eos: int, wrong: str = "") -> list[list[int]]:
    """1 up to and including the first end-of-text. Wrong: `drops_eos`, `last_eos`."""
    found = []
    for row in tokens:
        ends = [place for place, token in enumerate(row) if token == eos]
        if not ends:
            found.append([1] * len(row))
            continue
        end = ends[-1] if wrong == "last_eos" else ends[0]
        n = end if wrong == "drops_eos" else end + 1
        found.append([1] * n + [0] * (len(row) - n))
    return found


def penalised(scores: Row, tokens: Sequence[Sequence[int]], eos: int, penalty: float, wrong: str = "") -> list[float]:
    """Scores less the penalty where no end-of-text is.

    Wrong: `replaced`, `added`, `eos_in_last_place_not_seen`, `replaced+eos_in_last_place_not_seen`.
    """
    wrongs, found = wrong.split("+"), []
    for score, row in zip(scores, tokens, strict=True):
        ended = eos in (row[:-1] if "eos_in_last_place_not_seen" in wrongs else row)
        unfinished = {"replaced": -penalty, "added": score + penalty}.get(wrongs[0], score - penalty)
        found.append(score if ended else unfinished)
    return found


def position_ids(mask: Sequence[Sequence[int]], wrong: str = "") -> Found:
    """The place of each real token among the real ones. Wrong: `counts_padding`, `begins_at_one`."""
    shift = 1 if wrong == "begins_at_one" else 0
    return [
        [(place if wrong == "counts_padding" else sum(row[:place]) + shift) if here else None
         for place, here in enumerate(row)]
        for row in mask
    ]  # fmt: skip


def score_places(lengths: Sequence[int], wrong: str = "") -> list[int]:
    """Index of each row's last real token. Wrong: `one_before`, `last_column`."""
    if wrong == "last_column":
        return [max(lengths) - 1] * len(lengths)
    return [n - (2 if wrong == "one_before" else 1) for n in lengths]


def response_places(prompt: int, response: int, wrong: str = "") -> list[int]:
    """Positions whose logits predict the response's tokens. Wrong: `not_shifted`, `one_less`."""
    if wrong == "not_shifted":
        return list(range(prompt, prompt + response))
    return list(range(prompt - 1, prompt + response - (2 if wrong == "one_less" else 1)))


def log_softmax(logits: Row, temperature: float) -> list[float]:
    """Of one position, in nats."""
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    normaliser = top + math.log(sum(math.exp(x - top) for x in scaled))
    return [x - normaliser for x in scaled]


def logprobs(logits: Sequence[Rows], tokens: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
    """Log-probability of each token at the sampling temperature."""
    return [
        [log_softmax(position, temperature)[token] for position, token in zip(row, ids, strict=True)]
        for row, ids in zip(logits, tokens, strict=True)
    ]


def entropies(logits: Sequence[Rows], temperature: float) -> list[list[float]]:
    """Entropy of each position's distribution at the sampling temperature, in nats."""
    return [[-sum(math.exp(x) * x for x in log_softmax(position, temperature)) for position in row] for row in logits]


# KL and rewards


def kl(new: Rows, ref: Rows, mask: Sequence[Sequence[int]], estimator: str = "k1") -> Found:
    """Per token; `estimator` is k1, k2, k3, or the mistake `reversed` (k1 of ref against new)."""
    formulas: dict[str, Callable[[float, float], float]] = {
        "k1": lambda p, q: p - q,
        "k2": lambda p, q: (p - q) ** 2 / 2,
        "k3": lambda p, q: math.exp(q - p) - 1 - (q - p),
        "reversed": lambda p, q: q - p,
    }
    return each(formulas[estimator], mask, new, ref)


def token_rewards(
    scores: Row, new: Rows, ref: Rows, mask: Sequence[Sequence[int]], kl_coef: float, wrong: str = ""
) -> Found:
    """-kl_coef * k1 at each token, and the score at the last.

    Wrong: `kl_sign`, `score_everywhere`, `score_at_first`, `score_in_last_column`, `kl_once` (a response's sum at its
    end).
    """
    found: Found = []
    for score, p, q, marks in zip(scores, new, ref, mask, strict=True):
        n = length(marks)
        row: list[float | None] = [None] * len(marks)
        for t in range(n):
            place = {"score_at_first": 0, "score_in_last_column": len(marks) - 1}.get(wrong, n - 1)
            bonus = score if t == place or wrong == "score_everywhere" else 0.0
            cost = p[t] - q[t]
            if wrong == "kl_once":
                cost = sum(p[s] - q[s] for s in range(n)) if t == n - 1 else 0.0
            row[t] = bonus - kl_coef * cost * (-1 if wrong == "kl_sign" else 1)
        found.append(row)
    return found


def adapted(kl_coef: float, measured: float, target: float, episodes: int, horizon: int, wrong: str = "") -> float:
    """Ziegler's controller after one batch. Wrong: `not_clipped`, `other_way`, `no_horizon`."""
    error = measured / target - 1
    if wrong != "not_clipped":
        error = max(-0.2, min(0.2, error))
    share = 1.0 if wrong == "no_horizon" else episodes / horizon
    return kl_coef * (1 + (-error if wrong == "other_way" else error) * share)


# Advantages


def gae(
    rewards: Rows, values: Rows, mask: Sequence[Sequence[int]], gamma: float, lam: float, wrong: str = ""
) -> dict[str, Found]:
    """Advantages by the defining double sum, and returns.

    Wrong: `bootstraps_from_padding`, `lambda_forgotten`, `gamma_forgotten`, `no_next_value`.
    """
    decay = gamma * (1.0 if wrong == "lambda_forgotten" else lam)
    if wrong == "gamma_forgotten":
        gamma, decay = 1.0, lam
    advantages: Found = []
    for r, v, marks in zip(rewards, values, mask, strict=True):
        n = length(marks)
        end = len(marks) if wrong == "bootstraps_from_padding" else n

        def delta(t: int, r: Row = r, v: Row = v, end: int = end) -> float:
            after = v[t + 1] if t + 1 < end and wrong != "no_next_value" else 0.0
            return r[t] + gamma * after - v[t]

        row: list[float | None] = [sum(decay ** (s - t) * delta(s) for s in range(t, n)) for t in range(n)]
        advantages.append(row + [None] * (len(marks) - n))
    returns = each(lambda a, v: a + v, mask, advantages, values)  # type: ignore[arg-type]
    return {"advantages": advantages, "returns": returns}


def leave_one_out(returns: Row, k: int, wrong: str = "") -> list[float]:
    """Each return less the mean of its prompt's others. Wrong: `own_return_counted`, `other_prompts_counted`."""
    found = []
    for i, own in enumerate(returns):
        first = i - i % k
        group = range(len(returns)) if wrong == "other_prompts_counted" else range(first, first + k)
        others = [returns[j] for j in group if j != i or wrong == "own_return_counted"]
        found.append(own - sum(others) / len(others))
    return found


def moments(rows: Rows, mask: Sequence[Sequence[int]], unbiased: bool = False) -> tuple[float, float]:
    """Mean and variance over the real tokens; biased unless said otherwise."""
    numbers = real(rows, mask)
    mean = sum(numbers) / len(numbers)
    return mean, sum((x - mean) ** 2 for x in numbers) / (len(numbers) - (1 if unbiased else 0))


def whiten(rows: Rows, mask: Sequence[Sequence[int]], shift_mean: bool, wrong: str = "") -> Found:
    """Variance 1; mean 0 with `shift_mean`, else the mean as it was.

    Wrong: `mean_added_back` / `mean_removed` (the reverse of what is asked), `unbiased_variance`, `padding_counted`,
    `row_by_row`; the first two also with `+unbiased_variance`.
    """
    wrongs = wrong.split("+")
    if wrong == "row_by_row":
        return [whiten([row], [marks], shift_mean)[0] for row, marks in zip(rows, mask, strict=True)]
    if wrongs[0] in ("mean_added_back", "mean_removed"):
        shift_mean = not shift_mean
    counted = [[1] * len(marks) for marks in mask] if wrong == "padding_counted" else mask
    mean, variance = moments(rows, counted, "unbiased_variance" in wrongs)
    kept = 0.0 if shift_mean else mean
    return each(lambda x: (x - mean) / math.sqrt(variance) + kept, mask, rows)
