"""Candidates: the models of an evaluation, each loaded once, and how each is asked.

A chat model answers through its chat template. A base model continues a text: the bare prompt, and as a second
candidate a few worked examples with the prompt behind them (Ouyang et al. 2022, section 3.5: "GPT" and "GPT
(prompted)"). Its answer ends at a stop string, and an answer that was cut there counts as finished: a base model never
learnt to end a turn, so the stop string is its end-of-text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded, Messages, encode_texts, tokenizer_hash
from gptlife.stages.evals.prompt_sets import PROMPTED, PromptSet
from gptlife.stages.generation.sampler import encode_prompts, sample, text_of
from gptlife.stages.modeling import lengths, loading
from gptlife.stages.modeling.forward import SelectedLogits
from gptlife.stages.runtime.artifact import CHECKPOINTS, MANIFEST, is_complete
from gptlife.stages.runtime.files import read_json


class Answers(NamedTuple):
    """One answer per prompt of a set."""

    texts: list[str]
    finished: list[bool]
    """Whether the answer ended by itself: at the end-of-text token, or a base model's at a stop string."""


class Sampling(NamedTuple):
    """How answers are drawn; temperature 0 takes the most likely token."""

    max_new_tokens: int
    temperature: float
    generation_batch_size: int


@dataclass(frozen=True)
class Continuation:
    """How a base model is asked: a text that it continues up to a stop string."""

    form: str
    """The text around `{prompt}`."""
    stop: Sequence[str]
    examples: str = ""
    """Worked examples in front of the form."""
    n_examples: int = 0

    def text(self, messages: Messages) -> str:
        """What the model is to continue."""
        return self.examples + self.form.format(prompt=messages[-1]["content"])

    def cut(self, answers: Answers) -> Answers:
        """Each answer up to its first stop string."""
        texts, finished = [], []
        for text, ended in zip(*answers, strict=True):
            before = text
            for stop in self.stop:
                before = before.partition(stop)[0]
            texts.append(before.strip())
            finished.append(ended or before != text)
        return Answers(texts, finished)


def continuations(
    plain_format: str, stop: Sequence[str], shots: Sequence[Messages] | None, shot_format: str
) -> dict[str, Continuation]:
    """The ways to ask a base model, by what follows its name: "", and with `shots` also `PROMPTED`."""
    ways = {"": Continuation(plain_format, stop)}
    if shots is not None:
        examples = [shot_format.format(prompt=turns[-2]["content"], answer=turns[-1]["content"]) for turns in shots]
        form = shot_format.partition("{answer}")[0].rstrip(" ")
        ways[PROMPTED] = Continuation(form, stop, "".join(examples), len(shots))
    return ways


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation, on its device."""

    name: str
    model: Any
    tokenizer: Any
    asked: Continuation | None
    """None: through the chat template."""
    sampling: Sampling
    accelerator: Accelerator
    micro_batch_tokens: int
    """Padded tokens in one forward pass."""
    scratch: Path
    """A directory for what a task keeps from one candidate to the next with the same tokenizer, kills included."""

    @cached_property
    def reader(self) -> SelectedLogits:
        """The model as the forward passes read it."""
        return SelectedLogits(self.model)

    def answer(self, prompts: PromptSet) -> Answers:
        """One answer per prompt.

        Raises:
            UserError: when a prompt leaves no room for the answer in the model's context.
        """
        drawn = sample(
            self.model,
            self._encode(prompts),
            max_new_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature or 1.0,
            greedy=self.sampling.temperature == 0.0,
            eos=self.tokenizer.eos_token_id,
            seed=prompts.seed,
            generation_batch_size=self.sampling.generation_batch_size,
        )
        answers = Answers(
            [text_of(self.tokenizer, answer.tokens) for answer in drawn], [answer.finished for answer in drawn]
        )
        return answers if self.asked is None else self.asked.cut(answers)

    def _encode(self, prompts: PromptSet) -> list[Encoded]:
        longest = self.sampling.max_new_tokens
        if self.asked is None:
            return encode_prompts(self.tokenizer, prompts.rows, self.model, longest, prompts.field)
        encoded = encode_texts(self.tokenizer, [self.asked.text(row["messages"]) for row in prompts.rows])
        room = lengths.context_of(self.model) - longest
        if max(len(tokens) for tokens in encoded) > room:
            what, act = f"{prompts.field}: a prompt has over", "shorten it or lower max_new_tokens"
            if self.asked.n_examples:
                what = f"evaluation.n_shots: a prompt with {self.asked.n_examples} worked examples has over"
                act = "show fewer"
            raise UserError(
                f"{what} {room} tokens, all that max_new_tokens {longest} leaves of the base model's context; {act}"
            )
        return [Encoded.prompt(tokens) for tokens in encoded]


def continues_text(name: str, path: Path) -> bool:
    """Whether an input is a base model: one whose stage is of the family `base`.

    An adopted model's directory does not tell; it is a base model when its input is called `base` or `base_...`.
    """
    manifest = read_json(path / MANIFEST) if is_complete(path) else {}
    if "stage" not in manifest or "adopted" in manifest:
        return name == "base" or name.startswith("base_")
    # Manifests that were written before stages had families name the stage alone.
    return bool(manifest.get("family", "base" if manifest["stage"] == "pretrain" else None) == "base")


def load_candidates(
    name: str,
    path: Path,
    ways: Mapping[str, Continuation | None],
    sampling: Sampling,
    accelerator: Accelerator,
    micro_batch_tokens: int,
    output: Path,
) -> list[Candidate]:
    """The model at `path`, loaded once, as one candidate per way to ask it (by what follows the name).

    Raises:
        UserError: when the directory holds no such model.
    """
    tokenizer = loading.load_tokenizer(path)
    model = loading.load_causal(path, tokenizer).to(accelerator.device).eval()
    scratch = output / CHECKPOINTS / f"tokenizer-{tokenizer_hash(tokenizer)[:12]}"
    return [
        Candidate(f"{name}{suffix}", model, tokenizer, way, sampling, accelerator, micro_batch_tokens, scratch)
        for suffix, way in ways.items()
    ]
