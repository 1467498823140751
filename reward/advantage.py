"""Advantages: generalised advantage estimation over right-padded responses, and leave-one-out over whole ones.

Schulman et al. 2016 (arXiv 1506.02438, Eq 16), with the response's end as the episode's end:

    delta_t = r_t + gamma V_{t+1} - V_t,  A_t = sum_l (gamma lam)^l delta_{t+l},  return_t = A_t + V_t

V is 0 after the last real token: nothing is bootstrapped from padding. RLHF uses gamma 1 and lam 0.95 (Ziegler,
Stiennon, InstructGPT); lam 1 makes the return the plain sum of the rewards to come.

Kool, van Hoof and Welling 2019 ("Buy 4 REINFORCE samples, get a baseline for free!"); Ahmadian et al. 2024 (arXiv
2402.14740, section 3.2, RLOO): of k answers to a prompt, each has the mean return of the k - 1 others as its baseline,
which doesn't depend on it, so the policy gradient stays unbiased without a value function.

Legend: B batch, R response.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages_BR, returns_BR), both 0 where `mask_BR` is False; call it without gradient.

    `values_BR[b, t]` is the value of the state in which token t was chosen. `returns_BR` is what the value function is
    trained to say; whiten the advantages only afterwards.
    """
    rewards_BR = torch.where(mask_BR, rewards_BR, 0)
    values_BR = torch.where(mask_BR, values_BR, 0)
    next_values_BR = torch.nn.functional.pad(values_BR[:, 1:], (0, 1))
    deltas_BR = rewards_BR + gamma * next_values_BR - values_BR
    advantage_B = torch.zeros_like(deltas_BR[:, 0])
    backwards = []
    for delta_B in reversed(deltas_BR.unbind(1)):
        advantage_B = delta_B + gamma * lam * advantage_B
        backwards.append(advantage_B)
    advantages_BR = torch.stack(backwards[::-1], dim=1)
    return advantages_BR, advantages_BR + values_BR


def leave_one_out(returns_B: Tensor, k: int) -> Tensor:
    """advantages_B: each return less the mean of the `k` - 1 others of its prompt; a prompt's k stand together.

    Raises:
        ValueError: when k is less than 2 or does not divide B.
    """
    if k < 2 or len(returns_B) % k:
        raise ValueError(f"k must be at least 2 and divide the number of returns, found {k} and {len(returns_B)}")
    returns_PK = returns_B.view(-1, k)
    others_PK = (returns_PK.sum(1, keepdim=True) - returns_PK) / (k - 1)
    return (returns_PK - others_PK).view(-1)
