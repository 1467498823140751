"""Rankings: K answers to one prompt and their ranks, read from pairs, judged pairs and K-way rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from gptlife.data.errors import UserError
from gptlife.data.readers import Row
from gptlife.data.turns import (
    EMPTY_ACT,
    PROMPT_FIELDS,
    ROW_ACT,
    Form,
    Messages,
    first_of,
    read_message,
    read_messages,
    read_prompt,
    read_transcript,
    shown,
    string,
    strings,
    system_turn,
)
from gptlife.data.values import is_int

ANSWER_FIELDS = ("completions", "answers")
RANK_FIELDS = ("ranking", "ranks", "scores")


def from_k_answers(row: Row) -> Form:
    """K answers with ranks, or with scores that are made ranks."""
    rank_field = first_of(row, RANK_FIELDS)
    answers, ranks = strings(row, first_of(row, ANSWER_FIELDS)), row.fields[rank_field]
    wanted = "numbers" if rank_field == "scores" else "whole numbers from 1 (best)"
    if not isinstance(ranks, list) or not all(_is_rank(value, rank_field) for value in ranks):
        raise UserError(f"{row.place}: '{rank_field}' must be a list of {wanted}, found {shown(ranks)}; {ROW_ACT}")
    if len(ranks) != len(answers):
        counts = f"{len(ranks)} entries for {len(answers)} answers"
        raise UserError(f"{row.place}: '{rank_field}' has {counts}; {ROW_ACT}")
    if len(answers) < 2:
        raise UserError(f"{row.place}: {len(answers)} answer(s), a ranking needs at least 2; {ROW_ACT}")
    if rank_field == "scores":
        ranks = [1 + sum(other > score for other in ranks) for score in ranks]
    return {"messages": read_prompt(row), "answers": answers, "ranks": ranks, **_finished(row, len(answers))}


def _finished(row: Row, count: int) -> dict[str, list[bool]]:
    """{"finished"} where the row has it: whether each answer ended by itself or was cut off."""
    finished = row.fields.get("finished")
    if finished is None:
        return {}
    if not isinstance(finished, list) or [type(value) for value in finished] != [bool] * count:
        raise UserError(f"{row.place}: 'finished' must be a list of true or false for {count} answers; {ROW_ACT}")
    return {"finished": finished}


def _is_rank(value: Any, field: str) -> bool:
    if field == "scores":
        return is_int(value) or (isinstance(value, float) and not math.isnan(value))
    return is_int(value) and value >= 1


def from_judged_pair(row: Row) -> Form:
    """AlpacaEval's: `preference` 1 or 2 = that output is better, 0 or 1.5 = tie, null = the judge failed."""
    preference = row.fields["preference"]
    ranks_of = {"1": [1, 2], "2": [2, 1], "0": [1, 1], "1.5": [1, 1]}
    ranks = ranks_of.get(str(preference).removesuffix(".0"))  # published as 1, 1.0 and, in a CSV, "1"
    if ranks is None:
        fault = f"'preference' is {shown(preference)}, not 1, 2 or a tie (0, 1.5)"
        raise UserError(f"{row.place}: {fault}; {ROW_ACT}")
    answers = [string(row, name).strip() for name in ("output_1", "output_2")]
    return {"messages": read_prompt(row), "answers": answers, "ranks": ranks}


def from_pair(row: Row) -> Form:
    """chosen and rejected: whole conversations where they have turns before the answer, else answers to the prompt."""
    sides = [_side(row, name) for name in ("chosen", "rejected")]
    (chosen_prompt, chosen), (rejected_prompt, rejected) = sides
    if chosen_prompt != rejected_prompt:
        raise UserError(f"{row.place}: chosen and rejected differ before the last answer; {ROW_ACT}")
    if not chosen:
        raise UserError(f"{row.place}: answer ('chosen') is empty; {EMPTY_ACT}")
    return {
        "messages": system_turn(row) + chosen_prompt if chosen_prompt else read_prompt(row),
        "answers": [chosen, rejected],
        "ranks": [1, 2],
    }


def _side(row: Row, name: str) -> tuple[Messages, str]:
    """(turns before the answer, the answer) of one side of a pair."""
    value = row.fields[name]
    if isinstance(value, str):
        if any(row.fields.get(field) is not None for field in PROMPT_FIELDS):
            return [], value.strip()
        turns = read_transcript(row, name)
        if not turns[-1]["content"]:
            raise UserError(f"{row.place}: last answer of '{name}' is empty; {EMPTY_ACT}")
    else:
        turns = [read_message(row, name, value)] if isinstance(value, Mapping) else read_messages(row, name)
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{row.place}: '{name}' ends in the {turns[-1]['role']}'s turn; {ROW_ACT}")
    return turns[:-1], turns[-1]["content"]


def pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) of every pair that is not tied."""
    return [
        (i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]
    ]
