"""What sets one online algorithm apart from another: an `Algorithm`, written in the file of its stage.

The loop (`loop.py`) samples, reads and steps; the algorithm says what the episodes are worth and what is
learnt from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gptlife.stages.rl.config import OnlineConfig
    from gptlife.stages.rl.episodes import Experience, Minibatch, Readings, Rollouts

Loss = Callable[["nn.Module", "Minibatch"], "dict[str, Tensor]"]
"""(network, minibatch) -> sums over its entries: `loss_sum` (with gradient), `n` (how many entries) and further
`<metric>_sum`, which are logged as means over n."""


class Algorithm(ABC):
    """An online algorithm; a stage's own derives from it."""

    name: ClassVar[str]
    """The stage's."""
    title: ClassVar[str]
    """As people write it."""
    answers_per_prompt: int = 1
    """A prompt's answers lie side by side in a batch."""
    value_learning_rate: float | None = None
    """Peak learning rate of the value network; None: there is none."""

    config: OnlineConfig
    """The stage's."""

    @abstractmethod
    def experience(self, readings: Readings, rollouts: Rollouts, kl_coef: float) -> Experience:
        """Rewards, advantages and returns of all episodes of a step."""

    def denominator(self, rollouts: Rollouts, experience: Experience, episodes: Sequence[int]) -> float:
        """What the loss of a minibatch is divided by, over all processes: by default its response tokens."""
        return float(rollouts.mask_BR[list(episodes)].sum())

    @abstractmethod
    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The loss of each network that learns in this step, by its name in `Networks`."""
