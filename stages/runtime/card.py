"""Model cards: a README.md beside each output that says what it is, what it was made from and how to load it.

The text is a `huggingface_hub.ModelCard` of the template `card.md`: what is common to a family of stages is there, the
stage's own sentence is its `about`, and everything else comes from the manifest and the metrics.

Left out: licence and language, which depend on the data and are for the publisher to name; `base_model`, which the hub
takes for one of its own ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gptlife.data.sources import described
from gptlife.data.values import is_number
from gptlife.stages.runtime.files import write_text

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md")

Family = Literal["tokenizer", "base", "chat", "online", "preference", "reward", "answers", "rankings", "evaluation"]
"""What a stage's output is: `base` continues text, `chat`, `online` and `preference` answer in a chat and tell how they
learnt (from demonstrations, from their own answers, from preferences)."""
_GENERATES = ("base", "chat", "online", "preference")


class About(NamedTuple):
    """A stage, as its model card describes it."""

    stage: str
    family: Family
    text: str


def write_card(output: Path, about: About, manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write `README.md` into the directory `output`; `manifest` is the manifest's content, files not needed.

    Raises:
        OSError: when it can't be written.
    """
    from huggingface_hub import ModelCard, ModelCardData

    scores = "text-classification" if about.family == "reward" else None
    front = ModelCardData(
        library_name="transformers" if about.family in (*_GENERATES, "reward", "tokenizer") else None,
        pipeline_tag="text-generation" if about.family in _GENERATES else scores,
        tags=["gptlife", about.stage],
    )
    card = ModelCard.from_template(
        front,
        template_path=str(_TEMPLATE),
        stage=about.stage,
        family=about.family,
        about=about.text,
        algorithm=metrics.get("algorithm"),
        lineage=_lineage(manifest),
        data=_data(manifest),
        metrics=_numbers(metrics),
        win_rates=_win_rates(metrics),
    )
    write_text(output / CARD, f"{card}\n")


def _lineage(manifest: Mapping[str, Any]) -> str:
    lines = [f"- address: {_code(manifest.get('address', 'unknown'))}"]
    lines += [f"- {name}: {_code(address)}" for name, address in (manifest.get("inputs") or {}).items()]
    lines += [f"- commit of gptlife: {_code(manifest['commit'])}"] if manifest.get("commit") else []
    versions = ", ".join(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
    return "\n".join(lines + ([f"- versions: {versions}"] if versions else []))


def _data(manifest: Mapping[str, Any]) -> str:
    config = (manifest.get("identity") or {}).get("config") or {}
    lines = [f"- `{field}`: {described(source)}" for field, source in _sources(config, "")]
    return "\n".join(lines) or "None besides its inputs."


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


def _numbers(metrics: Mapping[str, Any]) -> str:
    """A table of the plain numbers; of nested ones, the calibration error alone."""
    plain = {name: value for name, value in metrics.items() if is_number(value)}
    if is_number((metrics.get("calibration") or {}).get("ece")):
        plain["calibration error"] = metrics["calibration"]["ece"]
    return _table("| metric | value |\n|---|---:|", [f"| {name} | {value:,.6g} |" for name, value in plain.items()])


def _win_rates(metrics: Mapping[str, Any]) -> str:
    rows = [
        f"| {row['a']} | {row['b']} | {row['rate']:.1%} | {row['low']:.1%} to {row['high']:.1%} |"
        for row in metrics.get("win_rates") or []
    ]
    return _table("| a | b | a preferred | 95 % interval |\n|---|---|---:|---:|", rows)


def _table(head: str, rows: list[str]) -> str:
    """A Markdown table; empty where it has no row."""
    return "\n".join([head, *rows]) if rows else ""


def _code(text: Any) -> str:
    return f"`{str(text).replace('`', '')}`"
