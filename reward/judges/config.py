"""Configs of judges and labelers."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gptlife.data.config import Config, Execution, HashFile
from gptlife.reward.judges.functions import identity_of_function
from gptlife.reward.judges.llm_prompt import INSTRUCTION


class LLMJudgeConfig(Config):
    """A language model behind an OpenAI-compatible endpoint, which compares two answers."""

    endpoint: str
    """`http://host:port/v1`, to which `/chat/completions` is added."""
    model: str
    """The model's name at the endpoint."""
    instruction: str = INSTRUCTION
    """What makes an answer the better one. How to state the verdict is added to it."""
    key_variable: Execution[str | None] = None
    """Environment variable that holds the endpoint's key; null: no key is sent. No file has the key itself."""
    both_orders: bool = True
    """Ask with either answer first. false halves the cost: the order of each pair is then drawn, so a model's
    preference for a position no longer cancels."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature of the verdict; null: not sent, for models that accept only their own."""
    max_tokens: int | None = Field(512, ge=1)
    """Longest reply in tokens, reasoning included; null: not sent."""
    max_unparseable: Execution[float] = Field(0.05, ge=0, le=1)
    """Judging stops when more than this share of the replies has no verdict; up to it they count as ties."""
    timeout: Execution[float] = Field(120.0, gt=0)
    """Seconds without data from the endpoint after which a request is given up and sent again."""
    retries: Execution[int] = Field(6, ge=0)
    """Further tries of a request that failed; the waits between them double, from about 0.5 s to 8 s."""
    parallel: Execution[int] = Field(8, ge=1)
    """Requests at the same time."""
    prompt_price: Execution[float | None] = Field(None, ge=0)
    """Price per million prompt tokens, in any currency; null: the cost is not reported."""
    completion_price: Execution[float | None] = Field(None, ge=0)
    """Price per million completion tokens, in the same currency."""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        printable = re.fullmatch(r"[!-~]+", url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or not printable:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "the address has more than host, port and path; put a key into the variable that key_variable names"
            )
        return url

    @model_validator(mode="after")
    def _both_prices(self) -> LLMJudgeConfig:
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("give both prompt_price and completion_price, or neither")
        return self


class _FunctionConfig(Config):
    function: str | None = None
    """A Python function: `package.module:name` or `path/file.py:name`."""

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """As `Config.identity`, with a function's file by its content."""
        identity = super().identity(hash_file)
        if self.function is not None:
            identity["function"] = identity_of_function(self.function, hash_file)
        return identity


class JudgeConfig(_FunctionConfig):
    """A judge: exactly one of `village`, `function`, `reward_model`, `llm`."""

    village: bool = False
    """The Village's gold judge, which knows the truth; needs prompts of the Village."""
    reward_model: bool = False
    """The reward model among the stage's inputs (no independent evidence where PPO was trained on it)."""
    llm: LLMJudgeConfig | None = None
    """A language model that compares two answers. It gives no scores, so it serves only where answers are compared."""

    @model_validator(mode="after")
    def _one(self) -> JudgeConfig:
        if [self.village, self.function is not None, self.reward_model, self.llm is not None].count(True) != 1:
            raise ValueError(
                "name exactly one judge: village: true, function: module:name, reward_model: true, or llm: {...}"
            )
        return self


class PanelConfig(_FunctionConfig):
    """A group of labelers: exactly one of `village`, `function`."""

    village: Literal["training", "heldout"] | None = None
    """A group of the Village's people."""
    seed: int = 0
    """Draws the people's tastes."""

    @model_validator(mode="after")
    def _one(self) -> PanelConfig:
        if [self.village is not None, self.function is not None].count(True) != 1:
            raise ValueError("name exactly one panel: village: training, village: heldout, or function: module:name")
        return self
