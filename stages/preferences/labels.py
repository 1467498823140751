"""Answers with single labels as `kto` reads them: from labelled data, or from rankings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptlife.data.answers import encode_answers
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.data.splits import split
from gptlife.stages.preferences.rankings import Row, encode, train_and_held_out


def labelled_rows(
    data: Data | None,
    validation: Data | float,
    seed: int,
    comparisons: Sequence[Path | None],
    tokenizer: Any,
    limit: int,
    stage: str,
) -> tuple[list[Row], list[Row]]:
    """Answers of at most `limit` tokens, prompt included, to train on and held out.

    They have `encoded`, the prompt with the answer, and `label`, whether the answer is desirable; without `data` they
    come from the rankings of outputs of `comparisons`.

    Raises:
        UserError: when there are none, or all have the same label; `stage` begins its text.
    """
    if data is None:
        rankings = train_and_held_out(None, validation, seed, comparisons, stage)
        parts = [encode(part, tokenizer, limit, f"{stage}.data", empty=False) for part in rankings]
        train, held_out = ([row for ranking in part for row in label_rows(ranking)] for part in parts)
    else:
        from gptlife.data.forms import labelled

        rows = labelled(data, seed)
        if isinstance(validation, float):
            rows, aside = split(rows, validation, f"{stage}.validation")
        else:
            aside = labelled(validation, seed)
        train, held_out = (_encode(part, tokenizer, limit, stage) for part in (rows, aside))
    for name, part in (("data", train), ("validation", held_out)):
        desirable = sum(row["label"] for row in part)
        if not 0 < desirable < len(part):
            raise UserError(
                f"{stage}.{name}: {desirable} of {len(part)} answers of at most {limit} tokens are desirable; "
                "give answers of both labels"
            )
    return train, held_out


def label_rows(ranking: Row) -> list[Row]:
    """An encoded ranking's answers of the best rank (desirable) and of the worst (undesirable), not those between."""
    ranks = ranking["ranks"]
    return [
        {"encoded": answer, "label": rank == min(ranks)}
        for answer, rank in zip(ranking["encoded"], ranks, strict=True)
        if rank in (min(ranks), max(ranks))
    ]


def _encode(rows: Sequence[Row], tokenizer: Any, limit: int, stage: str) -> list[Row]:
    encoded = []
    for row in rows:
        (answer,) = encode_answers(
            tokenizer, row["messages"], [row["answer"]], None, limit=limit, too_long="drop", place=f"{stage}.data"
        )
        if answer is not None and any(answer.marks):
            encoded.append({"encoded": answer, "label": row["label"]})
    return encoded
