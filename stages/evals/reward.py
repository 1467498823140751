"""A reward model as the scorer of answers that are text.

It reads what PPO's loop has it read: the prompt in the chat template, the answer, and the end-of-text token if the
answer ended by itself; the score is taken at the last token. A row longer than the model's context loses its last
tokens. What PPO makes of a score (clipping, whitening, the penalty on answers without end-of-text) shapes its reward
and is no part of the score.

The text is encoded again, so where a policy sampled tokens that its tokenizer would not write for that text, PPO
scored other tokens than these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlife.data.answers import encode_answers
from gptlife.data.tokens import Encoded, Messages
from gptlife.reward.ensemble import EnsembleConfig, combine
from gptlife.stages.modeling import lengths, loading
from gptlife.stages.modeling.scorer import EnsembleScores, score


class RewardModel:
    """What the stage `reward_model` wrote, on a device."""

    def __init__(self, path: Path, ensemble: EnsembleConfig | None, device: torch.device) -> None:
        self.tokenizer = loading.load_tokenizer(path)
        reader: Any = loading.load_reward(path, ensemble).to(device).eval()
        several = isinstance(reader, EnsembleScores)
        self.members = list(reader.members) if several else [reader]
        self.rule: EnsembleConfig | None = reader.config if several else None
        self.limit = lengths.context_of(self.members[0].model)

    def encode(self, messages: Messages, answers: Sequence[str], finished: Sequence[bool], place: str) -> list[Encoded]:
        """Each answer behind its prompt, cut to the model's context.

        Raises:
            UserError: when the prompt alone fills the context; `place` names the prompt.
        """
        encoded = encode_answers(
            self.tokenizer, messages, answers, finished, limit=self.limit, too_long="cut", place=place
        )
        return [row for row in encoded if row is not None]

    def member_scores(self, rows: Sequence[Encoded]) -> Tensor:
        """scores_MS of M members for S rows."""
        return torch.stack([score(member, rows) for member in self.members])

    def combined(self, scores_MS: Tensor) -> Tensor:
        """scores_S by the ensemble's rule; those of the only member."""
        return scores_MS[0] if self.rule is None else combine(scores_MS, self.rule)
