"""Talk to a finished model, or ask several the same.

A model without a chat template (a base model from elsewhere) continues the last text instead. Answers are sampled as
everywhere in gptlife (sampler.py): from the model's own distribution at the given temperature, without top-k or top-p;
temperature 0 is greedy. An answer ends at the end-of-text token or after `max_tokens`.

Heavy imports are inside functions, so that a mistyped path is refused at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError
from gptlife.stages.runtime import artifact

if TYPE_CHECKING:
    from gptlife.data.tokens import Encoded

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.7
    max_tokens: int = 200
    """Longest answer."""
    seed: int = 0
    """Makes a conversation repeatable."""


@dataclass(frozen=True)
class Speaker:
    """A loaded model and its tokenizer."""

    name: str
    model: Any
    tokenizer: Any

    def answer(self, messages: Messages, sampling: Sampling, seed: int) -> str:
        """The model's next turn. The oldest turns are dropped where the conversation exceeds the model's context.

        Raises:
            UserError: when not even the last turn fits.
        """
        from gptlife.stages.generation.sampler import sample, text_of

        (answer,) = sample(
            self.model,
            [self._fitting(messages, sampling.max_tokens)],
            max_new_tokens=sampling.max_tokens,
            temperature=sampling.temperature or 1.0,
            greedy=sampling.temperature == 0,
            eos=self.tokenizer.eos_token_id,
            seed=f"chat {seed}",
        )
        return text_of(self.tokenizer, answer.tokens)

    def _fitting(self, messages: Messages, max_tokens: int) -> Encoded:
        from gptlife.stages.modeling.lengths import context_of

        room = context_of(self.model) - max_tokens
        start = 0
        while len(prompt := self._encoded(messages[start:])) > room:
            start += 2  # a turn and its answer
            if start >= len(messages):
                raise UserError(
                    f"{self.name}: the prompt has {len(prompt)} tokens, and {max(room, 0)} fit beside an answer of "
                    f"{max_tokens}; shorten it, or lower --max-tokens"
                )
        return prompt

    def _encoded(self, messages: Messages) -> Encoded:
        from gptlife.data.tokens import Encoded, encode_prompt, encode_text

        if self.tokenizer.chat_template is None:
            return Encoded.prompt(encode_text(self.tokenizer, messages[-1]["content"]))
        return encode_prompt(self.tokenizer, messages)


def load(path: Path) -> Speaker:
    """The language model in a directory, on the best device there is.

    Raises:
        UserError: when there is no language model in it, or it is damaged.
    """
    if not is_language_model(path):
        raise UserError(f"{path}: no language model to talk to; give an output of pretrain, sft or ppo")
    if artifact.is_complete(path):
        artifact.verify(path)
    from transformers import AutoModelForCausalLM

    from gptlife.stages.modeling.loading import load_tokenizer, read_weights
    from gptlife.stages.runtime.device import best_device
    from gptlife.stages.runtime.notices import quiet_libraries

    quiet_libraries()
    model = read_weights(AutoModelForCausalLM, path, dtype="auto")
    return Speaker(path.name, model.to(best_device(None)).eval(), load_tokenizer(path))


def is_language_model(path: Path) -> bool:
    """Whether a directory's config.json is a language model's (a reward model's names a classifier)."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not any("Classification" in name for name in config.get("architectures") or [])


def talk(speaker: Speaker, lines: Iterable[str], write: Callable[[str], None], sampling: Sampling) -> None:
    """Hold a conversation: each line is a turn of the user; `/reset` begins a new one, `/quit` ends it."""
    if speaker.tokenizer.chat_template is None:
        write(f"({speaker.name} has no chat template: it continues each line as text)")
    messages: Messages = []
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            messages = []
            write("(a new conversation)")
        elif text:
            messages.append({"role": "user", "content": text})
            answer = speaker.answer(messages, sampling, sampling.seed + len(messages))
            messages.append({"role": "assistant", "content": answer})
            write(answer)


def compare(
    speakers: Sequence[Speaker], prompts: Iterable[Messages], sampling: Sampling
) -> Iterable[tuple[str, list[str]]]:
    """For each prompt its last turn and every speaker's answer, all drawn with the same seed."""
    for number, messages in enumerate(prompts):
        yield messages[-1]["content"], [s.answer(messages, sampling, sampling.seed + number) for s in speakers]


def read_prompts(path: Path, limit: int) -> list[Messages]:
    """The first `limit` prompts of a file: one per line of a .txt file, else the rows of any known format.

    Raises:
        UserError: when the file is missing or has no prompt.
    """
    if path.suffix != ".txt":
        from gptlife.data.forms import prompts
        from gptlife.data.sources import Source

        return [row["messages"] for row in prompts([Source.model_validate({"path": str(path), "limit": limit})])]
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as text ({error}); give a file of prompts") from None
    if not lines:
        raise UserError(f"{path}: no prompt in it; write one per line")
    return [[{"role": "user", "content": line}] for line in lines[:limit]]
