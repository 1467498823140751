"""What the judge of an evaluation says of every candidate: scores, verdicts and preferences, each asked for once.

A judge that scores (a reward model, a function, one that knows the truth) prefers the higher score; beside the score it
may give verdicts, each where it is defined. An LLM only compares two answers, so its candidates have no scores. A
reward model as judge is called by whether a candidate was trained on it: its word is then no independent evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.judge import load_judge
from gptlife.reward.judges.verdicts import Judge, Verdict, scores_of
from gptlife.reward.statistics.winrate import bootstrap_mean, preferences_of
from gptlife.stages.evals.outputs import Outputs
from gptlife.stages.evals.prompt_sets import MAIN, PromptSet
from gptlife.stages.evals.reward import RewardModel
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.artifact import address_of
from gptlife.stages.runtime.files import read_json

if TYPE_CHECKING:
    from gptlife.reward.judges.llm import LLMJudge


class Judging:
    """One judge, and beside it the input `reward` where there is one, on every candidate's answers."""

    def __init__(
        self,
        config: JudgeConfig,
        sets: Mapping[str, PromptSet],
        outputs: Mapping[str, Outputs],
        reward: RewardModel | None,
        replies: Path,
    ) -> None:
        """`replies` is the file in which an LLM's replies are kept."""
        self._sets, self._outputs, self._reward = sets, outputs, reward
        self._verdicts: dict[tuple[str, str], list[Verdict]] = {}
        self._by_reward = config.reward_model
        self._llm: LLMJudge | None = None
        self._judge: Judge | None = None
        if config.llm is not None:
            from gptlife.reward.judges.llm import LLMJudge

            self._llm = LLMJudge(config.llm, cache=replies, field="evaluation.judge.llm")
        elif not config.reward_model:
            self._judge = load_judge(config, "evaluation.judge")

    def verdicts(self, name: str, key: str) -> list[Verdict] | None:
        """The judge's verdicts on a candidate's answers to a set, `score` among them; None where it only compares."""
        if self._llm is not None:
            return None
        if (name, key) not in self._verdicts:
            if self._judge is None:
                found: list[Verdict] = [{"score": score} for score in self._reward_scores(name, key)]
            else:
                found = self._judge(self._sets[key].rows, self._outputs[name].answers[key].texts)
            self._verdicts[name, key] = found
        return self._verdicts[name, key]

    def scores(self, name: str) -> list[float] | None:
        """The judge's scores on the main prompts; None where it only compares."""
        verdicts = self.verdicts(name, MAIN)
        return None if verdicts is None else scores_of(verdicts)

    def by_reward_model(self, name: str) -> dict[str, Any]:
        """`reward`: the reward model's mean score on the main prompts, beside that of another judge."""
        if self._reward is None or self._by_reward:
            return {}
        return {"reward": bootstrap_mean(self._reward_scores(name, MAIN))._asdict()}

    def prefer(self, a: str, b: str) -> list[float]:
        """Preference of A's answers over B's on the main prompts."""
        if self._llm is not None:
            texts_a, texts_b = (self._outputs[name].answers[MAIN].texts for name in (a, b))
            return self._llm.prefer(self._sets[MAIN].rows, texts_a, texts_b)
        scores_a, scores_b = self.scores(a), self.scores(b)
        assert scores_a is not None
        assert scores_b is not None
        preferences: list[float] = preferences_of(scores_a, scores_b).tolist()
        return preferences

    def usage(self) -> dict[str, Any]:
        """`judging`: what an LLM's verdicts took; nothing for other judges."""
        return {} if self._llm is None else {"judging": self._llm.usage._asdict()}

    def _reward_scores(self, name: str, key: str) -> list[float]:
        assert self._reward is not None
        prompts, answers = self._sets[key], self._outputs[name].answers[key]
        rows = []
        for number, (prompt, text, ended) in enumerate(zip(prompts.rows, *answers, strict=True), 1):
            rows += self._reward.encode(prompt["messages"], [text], [ended], f"{prompts.field}: prompt {number}")
        scores: list[float] = self._reward.combined(self._reward.member_scores(rows)).tolist()
        return scores


def name_of_reward(reward: Path, inputs: Mapping[str, Path]) -> str:
    """A reward model as a judge, in words: which of the inputs were trained on it."""
    trained = [
        name
        for name, path in inputs.items()
        if artifact.is_complete(path)
        and read_json(path / artifact.MANIFEST).get("inputs", {}).get("reward") == address_of(reward)
    ]
    if trained:
        return f"the reward model that {' and '.join(trained)} learnt from"
    return "a reward model that no candidate learnt from"
