"""Model cards: a README.md beside each output that says what it is, what it was made from and how to load it.

Front matter as the Hugging Face hub reads it (`library_name`, `pipeline_tag`, `tags`); everything else comes from the
manifest and the metrics. The text is chosen by the manifest's stage; a stage this module has no text for gets lineage,
data and metrics only.

Left out: licence and language, which depend on the data and are for who publishes; `base_model`, which the hub takes
for one of its own ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gptlife.stages.runtime import artifact

CARD = "README.md"

_CHAT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
messages = [{"role": "user", "content": "Tell me a story."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_TEXT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
inputs = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=True)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
_SCORE = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

directory = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSequenceClassification.from_pretrained(directory)
messages = [{"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": "No."}]
inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
score = model(**inputs).logits.item() + getattr(model.config, "reward_bias", 0.0)
print(score)
"""
_TOKENIZER = """\
from transformers import AutoTokenizer

directory = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(directory)
print(tokenizer("Once upon a time").input_ids)
"""
_ROWS = """\
import json
from pathlib import Path

rows = [json.loads(line) for line in Path("{file}").read_text(encoding="utf-8").split("\\n") if line]
print(rows[0])
"""


class _Kind(NamedTuple):
    """What the card of a stage says besides its numbers."""

    what: str
    text: str
    code: str
    limits: str
    front: dict[str, Any]


_ALIGNED = (
    "It is as good as its reward: what the reward model or function can't see was not learnt, and what fools it may "
    "have been. Compare the evaluation's judge, not the score below."
)
_GENERATES = {"library_name": "transformers", "pipeline_tag": "text-generation"}
_KINDS = {
    "tokenizer": _Kind(
        "a tokenizer",
        "A byte-level BPE tokenizer with its special tokens and chat template.",
        _TOKENIZER,
        "",
        {"library_name": "transformers"},
    ),
    "pretrain": _Kind(
        "a pretrained language model",
        "A causal language model trained on raw text from random weights. It continues text; it does not follow "
        "instructions.",
        _TEXT,
        "It repeats what its text says, the false and the rude included, and knows nothing beyond it.",
        _GENERATES,
    ),
    "sft": _Kind(
        "a fine-tuned chat model",
        "A language model fine-tuned on demonstrations, with a loss on the assistant's tokens only.",
        _CHAT,
        "It imitates its demonstrations with their flaws, and states what is false as fluently as what is true.",
        _GENERATES,
    ),
    "comparisons": _Kind(
        "ranked answers",
        "Prompts with K sampled answers each and a labeler's ranking of them; equal ranks are ties.",
        _ROWS.replace("{file}", "train.jsonl"),
        "",
        {},
    ),
    "reward_model": _Kind(
        "a reward model",
        "A language model with a scalar head: how good an answer is to a prompt, as the labelers rank. Scores are "
        "shifted so that the demonstrations (or the training answers) have mean 0. The conversation must end with the "
        "end-of-text token that the chat template writes: the score is read there.",
        _SCORE,
        "It stands for the taste of a few labelers on answers of one policy. Far from those it can be fooled: a policy "
        "that is optimised hard against it ends up with high scores and bad answers.",
        {"library_name": "transformers", "pipeline_tag": "text-classification"},
    ),
    "ppo": _Kind(
        "a chat model aligned by reinforcement learning",
        "A policy trained by {algorithm} against a reward. `ema/` holds its averaged weights and `value/` the value "
        "network; both load in the same way.",
        _CHAT,
        _ALIGNED,
        _GENERATES,
    ),
    "rloo": _Kind(
        "a chat model aligned by reinforcement learning",
        "A policy trained by {algorithm} against a reward, without a value network. `ema/` holds its averaged weights.",
        _CHAT,
        _ALIGNED,
        _GENERATES,
    ),
    "dpo": _Kind(
        "a chat model aligned by direct preference optimisation",
        "A policy trained on the pairs of ranked answers; no reward model stands between.",
        _CHAT,
        "It learnt from rankings of another policy's answers, and a high accuracy on their pairs can go with bad "
        "answers of its own. Compare the evaluation's judge.",
        _GENERATES,
    ),
    "best_of_n": _Kind(
        "answers, the best of n",
        "N sampled answers a prompt with every reward model's scores; `best` is the first reward model's favourite.",
        _ROWS.replace("{file}", "answers.jsonl"),
        "",
        {},
    ),
    "evaluation": _Kind(
        "an evaluation",
        "Answers of several checkpoints to the same unseen prompts, with a judge's scores.",
        _ROWS.replace("{file}", "answers.jsonl"),
        "",
        {},
    ),
}


def write_card(output: Path, title: str, manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write `README.md` into the directory `output`; `manifest` is the manifest's content, files not needed.

    Raises:
        OSError: when it can't be written.
    """
    stage = str(manifest.get("stage", title))
    kind = _KINDS.get(stage)
    front = {**(kind.front if kind else {}), "tags": ["gptlife", stage]}
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {title}" + (f": {kind.what}" if kind else ""),
    ]
    if kind:
        parts += [kind.text.replace("{algorithm}", str(metrics.get("algorithm", "PPO")))]
        parts += [f"## How to load it\n\n```python\n{kind.code}```"]
    parts += [f"## Made from\n\n{_lineage(manifest)}", f"## Data\n\n{_data(manifest)}", _numbers(metrics)]
    if kind and kind.limits:
        parts += [
            f"## Limits\n\n{kind.limits} It was not tested for safety; do not let it decide anything about people."
        ]
    parts += [
        "`stage.yaml` makes this directory again, `metrics.json` has every number, and `log.jsonl` the way there."
    ]
    artifact.write_text(output / CARD, "\n\n".join(part for part in parts if part) + "\n")


def _lineage(manifest: Mapping[str, Any]) -> str:
    lines = [f"- address: {_code(manifest.get('address', 'unknown'))}"]
    lines += [f"- {name}: {_code(address)}" for name, address in (manifest.get("inputs") or {}).items()]
    lines += [f"- commit of gptlife: {_code(manifest['commit'])}"] if manifest.get("commit") else []
    versions = ", ".join(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
    return "\n".join(lines + ([f"- versions: {versions}"] if versions else []))


def _data(manifest: Mapping[str, Any]) -> str:
    config = (manifest.get("identity") or {}).get("config") or {}
    lines = [f"- `{field}`: {_source(source)}" for field, source in _sources(config, "")]
    return "\n".join(lines) or "None of its own."


def _sources(value: Any, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(config field, source) of every data source's identity inside `value`."""
    if isinstance(value, Mapping):
        if "bad_rows" in value:  # what every source's identity has, and nothing else
            yield field, value
            return
        for name, item in value.items():
            yield from _sources(item, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _sources(item, field)


def _source(source: Mapping[str, Any]) -> str:
    if village := source.get("village"):
        told = ", ".join(f"{name} {value}" for name, value in village.items() if name != "part")
        text = f"the Village's {village.get('part')} ({told})"
    elif hub := source.get("hub"):
        name, revision, subset, split = hub
        text = f"{_code(name)} at {_code(revision)}, {'' if subset is None else f'{subset}, '}split {split}"
    else:
        files = source.get("files") or []
        text = "files of sha256 " + ", ".join(_code(str(digest)[:16]) for _, digest in files)
    start, limit = source.get("start") or 0, source.get("limit")
    rows = f"; rows from {start + 1}" + (f" to {start + limit}" if limit else "") if start or limit else ""
    weight = f"; weight {source['weight']:g}" if source.get("weight", 1.0) != 1.0 else ""
    return text + rows + weight


def _numbers(metrics: Mapping[str, Any]) -> str:
    """A table of the plain numbers (of nested ones, the calibration error), and the win rates where there are any."""
    plain = {name: value for name, value in metrics.items() if _is_number(value)}
    if _is_number((metrics.get("calibration") or {}).get("ece")):
        plain["calibration error"] = metrics["calibration"]["ece"]
    parts = []
    if plain:
        rows = "\n".join(f"| {name} | {value:,.6g} |" for name, value in plain.items())
        parts.append(f"## Metrics\n\n| metric | value |\n|---|---:|\n{rows}")
    if metrics.get("win_rates"):
        rows = "\n".join(
            f"| {row['a']} | {row['b']} | {row['rate']:.1%} | {row['low']:.1%} to {row['high']:.1%} |"
            for row in metrics["win_rates"]
        )
        parts.append(f"## Win rates\n\n| a | b | a preferred | 95 % interval |\n|---|---|---:|---:|\n{rows}")
    return "\n\n".join(parts)


def _code(text: Any) -> str:
    return f"`{str(text).replace('`', '')}`"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
