"""What an evaluation's judge says of every answerer: scores, verdicts, preferences; each asked for once.

A judge that scores (the Village's, a function, a reward model) prefers the higher score. An LLM only compares, so its
answerers have no scores. A reward model is named by whether an answerer was trained on it: that is no independent
evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.reward.judges.judge import describe, load_judge
from gptlife.reward.judges.verdicts import Judge, Prompt, Verdict, scores_of
from gptlife.reward.statistics.winrate import bootstrap_mean, preferences_of
from gptlife.stages.evals.candidates import MAIN, Answerer
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.stage import address_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.reward.judges.llm import LLMJudge
    from gptlife.stages.evaluation import EvaluationConfig


class Judging:
    """What the judge says of every answerer, asked for once."""

    def __init__(
        self,
        config: EvaluationConfig,
        accelerator: Accelerator,
        sets: dict[str, list[Prompt]],
        answerers: dict[str, Answerer],
        reward: Path | None,
        paths: dict[str, Path],
        output: Path,
    ) -> None:
        self._sets, self._answerers, self._village = sets, answerers, config.judge.village
        self._known: dict[tuple[str, str], list[Verdict]] = {}
        self._reward = _reward_judge(config, accelerator, reward) if reward is not None else None
        self._llm: LLMJudge | None = None
        self._judge: Judge | None = None
        self.name = describe(config.judge)
        if config.judge.llm is not None:
            from gptlife.reward.judges.llm import LLMJudge

            replies = output / artifact.CHECKPOINTS / "replies.jsonl"
            self._llm = LLMJudge(config.judge.llm, cache=replies, field="evaluation.judge.llm")
        elif config.judge.reward_model:
            assert reward is not None
            self._judge, self.name = self._reward, _name_of_reward(reward, paths)
        else:
            self._judge = load_judge(config.judge, "evaluation.judge")

    def verdicts(self, name: str, key: str) -> list[Verdict] | None:
        """The gold judge's verdicts on an answerer; None for other judges."""
        return self._given(name, key) if self._village else None

    def scores(self, name: str, key: str) -> list[float] | None:
        """The judge's scores; None where it only compares."""
        return None if self._judge is None else scores_of(self._given(name, key))

    def _given(self, name: str, key: str) -> list[Verdict]:
        assert self._judge is not None
        if (name, key) not in self._known:
            self._known[name, key] = self._judge(self._sets[key], self._answerers[name].answers[key])
        return self._known[name, key]

    def by_reward_model(self, name: str) -> dict[str, Any]:
        """The reward model's mean score beside that of another judge: what PPO was asked to raise."""
        if self._reward is None or self._judge is self._reward:
            return {}
        scores = scores_of(self._reward(self._sets[MAIN], self._answerers[name].answers[MAIN]))
        return {"reward": bootstrap_mean(scores)._asdict()}

    def prefer(self, a: str, b: str) -> list[float]:
        """Preference of A's answers over B's on the main prompts."""
        if self._llm is not None:
            texts_a, texts_b = (self._answerers[name].answers[MAIN] for name in (a, b))
            return self._llm.prefer(self._sets[MAIN], texts_a, texts_b)
        scores_a, scores_b = self.scores(a, MAIN), self.scores(b, MAIN)
        assert scores_a is not None
        assert scores_b is not None
        found: list[float] = preferences_of(scores_a, scores_b).tolist()
        return found

    def usage(self) -> dict[str, Any]:
        """What an LLM's verdicts took; nothing for other judges."""
        return {} if self._llm is None else {"judging": self._llm.usage._asdict()}


def _reward_judge(config: EvaluationConfig, accelerator: Accelerator, reward: Path) -> Judge:
    from gptlife.data.tokens import encode_answer, encode_prompt
    from gptlife.stages.modeling import loading
    from gptlife.stages.modeling.scorer import score

    tokenizer = loading.load_tokenizer(reward)
    reader = loading.load_reward(reward, config.ensemble).to(accelerator.device).eval()

    def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        rows = [
            encode_prompt(tokenizer, prompt["messages"]) + encode_answer(tokenizer, answer, True)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return [{"score": value} for value in score(reader, rows).tolist()]

    return judge


def _name_of_reward(reward: Path, paths: dict[str, Path]) -> str:
    """A reward model as a judge, in words: whether somebody here was trained on it."""
    trained = [
        name
        for name, path in paths.items()
        if artifact.is_complete(path)
        and artifact.read_json(path / artifact.MANIFEST).get("inputs", {}).get("reward") == address_of(reward)
    ]
    if trained:
        return f"the reward model that {' and '.join(trained)} learnt from"
    return "a reward model that nobody here learnt from"
