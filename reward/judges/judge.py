"""The judge that a config names: the Village's, which knows the truth, or a user's function.

A reward model is loaded by the stage that has it among its inputs; a language model only compares (`llm.py`).
"""

from __future__ import annotations

from gptlife.data.errors import UserError
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.functions import checked, load_function
from gptlife.reward.judges.verdicts import Judge


def load_judge(config: JudgeConfig, field: str = "judge") -> Judge:
    """The judge; `field` is the config field that errors name.

    Raises:
        UserError: for a language model, which gives no scores, for a reward model, and for a function that can't be
            loaded.
    """
    if config.llm is not None:
        raise UserError(f"{field}.llm: a language model compares two answers and gives no scores; name another judge")
    if config.village:
        from gptlife.data.village.verdicts import verdicts

        return verdicts
    if config.function is None:
        raise UserError(f"{field}.reward_model: this field takes no reward model; name another judge")
    return checked(load_function(config.function, field), config.function)


def describe(config: JudgeConfig) -> str:
    """The judge's name in a report."""
    if config.village:
        return "the Village's gold judge"
    if config.llm is not None:
        return f"the language model {config.llm.model}"
    return config.function or "the reward model"
