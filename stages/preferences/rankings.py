"""Rankings as preference stages read them: loaded, encoded, and as a batch in which a prompt has K rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.answers import encode_answers
from gptlife.data.errors import UserError
from gptlife.data.readers import read_jsonl
from gptlife.data.sources import Data

if TYPE_CHECKING:
    from torch import Tensor

    from gptlife.stages.modeling.batch import Batch

Row = dict[str, Any]


class Rankings:
    """Rankings as examples: one example is a prompt with its K encoded answers.

    With `shared`, an example is one row: the beginning that its answers share (the prompt) once, then what each answer
    adds, with an attention mask that keeps the answers apart and with each token's position in its own answer. The
    same scores for a half to a third of the tokens.
    """

    def __init__(self, rows: Sequence[Row], shared: bool = False) -> None:
        self.rows, self.shared = rows, shared
        # What one example costs in a forward pass: its one row, or K rows as wide as the longest.
        self.lengths = [
            _common(row["tokens"]) + sum(len(tokens) - _common(row["tokens"]) for tokens in row["tokens"])
            if shared
            else len(row["tokens"]) * max(len(tokens) for tokens in row["tokens"])
            for row in rows
        ]
        self.weights = [1.0] * len(rows)

    def collate(self, indices: Sequence[int]) -> Batch:
        """The answers of all the prompts, in order, read at their last token; targets `ranks` (N,) and `group` (N,).

        `input_ids` are (N, T), or if `shared` (B, T), with `position_ids` (B, T) and a bool `attention_mask`
        (B, 1, T, T).
        """
        import torch

        from gptlife.stages.modeling.batch import Batch

        answers = [row["tokens"] for row in (self.rows[index] for index in indices)]
        inputs, select = _one_row_per_prompt(answers) if self.shared else _one_row_per_answer(answers)
        targets = {
            "ranks": torch.tensor([rank for index in indices for rank in self.rows[index]["ranks"]]),
            "group": torch.tensor([index for index in indices for _ in self.rows[index]["ranks"]]),
        }
        return Batch(inputs, select, targets)


def _one_row_per_answer(answers: Sequence[Sequence[list[int]]]) -> tuple[dict[str, Tensor], Tensor]:
    import torch

    from gptlife.stages.modeling.forward import last_positions, pad_right

    flat, cpu = [tokens for of_prompt in answers for tokens in of_prompt], torch.device("cpu")
    return {"input_ids": pad_right(flat, 0, cpu)}, last_positions(flat, cpu)


def _one_row_per_prompt(answers: Sequence[Sequence[list[int]]]) -> tuple[dict[str, Tensor], Tensor]:
    """Part 0 of a row is what its answers share, parts 1 to K what each adds; padding is part -1."""
    import torch

    from gptlife.stages.modeling.forward import pad_right

    cpu = torch.device("cpu")
    rows: dict[str, list[list[int]]] = {"tokens": [], "parts": [], "positions": [], "ends": []}
    for of_prompt in answers:
        start = _common(of_prompt)
        row, parts, positions, ends = of_prompt[0][:start], [0] * start, list(range(start)), [0] * start
        for number, tokens in enumerate(of_prompt, 1):
            added = len(tokens) - start
            row, parts = row + tokens[start:], parts + [number] * added
            positions, ends = positions + list(range(start, len(tokens))), ends + [0] * (added - 1) + [1]
        for name, column in (("tokens", row), ("parts", parts), ("positions", positions), ("ends", ends)):
            rows[name].append(column)
    part_BT = pad_right(rows["parts"], -1, cpu)
    visible_BTT = (part_BT.unsqueeze(1) == 0) | (part_BT.unsqueeze(1) == part_BT.unsqueeze(2))
    inputs = {
        "input_ids": pad_right(rows["tokens"], 0, cpu),
        "position_ids": pad_right(rows["positions"], 0, cpu),
        "attention_mask": visible_BTT.tril().unsqueeze(1),
    }
    return inputs, pad_right(rows["ends"], 0, cpu).bool()


def _common(answers: Sequence[list[int]]) -> int:
    """How many tokens all answers share at the beginning, less one where that is all of the shortest."""
    shortest = min(len(tokens) for tokens in answers)
    first = answers[0]
    alike = next((i for i in range(shortest) if any(tokens[i] != first[i] for tokens in answers)), shortest)
    return min(alike, shortest - 1)


def sharing_is_exact(reader: Any, rows: Sequence[Row]) -> bool:
    """Whether a model gives `rows` the same scores either way: it takes a mask and positions, and uses them."""
    import torch

    device = next(reader.parameters()).device
    plain, shared = (Rankings(rows, how).collate(range(len(rows))).to(device) for how in (False, True))
    try:
        with torch.no_grad():
            one, two = (reader(batch.inputs, batch.select) for batch in (plain, shared))
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(torch.allclose(one, two, atol=1e-4, rtol=1e-4))


def train_and_held_out(
    data: Data | None, validation: Data | float, seed: int, comparisons: Sequence[Path | None], stage: str
) -> tuple[list[Row], list[Row]]:
    """The rankings of a stage's own data, or of outputs of `comparisons` (all rounds together).

    Raises:
        UserError: when there are none; `stage` begins its text.
    """
    from gptlife.data.forms import rankings
    from gptlife.data.splits import split

    outputs = [path for path in comparisons if path is not None]
    if data is None and not outputs:
        raise UserError(f"{stage}.data: no rankings; give `data`, or the input `comparisons`")
    if data is None:
        train, held_out = (
            [row for folder in outputs for row in _read(folder / f"{name}.jsonl")] for name in ("train", "validation")
        )
        return train, held_out
    if isinstance(validation, float):
        return split(rankings(data, seed), validation, f"{stage}.validation")
    return rankings(data, seed), rankings(validation, seed)


def _read(path: Path) -> list[Row]:
    """The rankings that the stage `comparisons` wrote."""
    return read_jsonl(path, "run the stage `comparisons` again")


def encode(rows: Sequence[Row], tokenizer: Any, limit: int, place: str, *, empty: bool = True) -> list[Row]:
    """The rankings with two untied answers of at most `limit` tokens, prompt included.

    Each gets `prompt` and `tokens`: the prompt's ids, and for each answer the prompt's and its own, with end-of-text
    where it ended by itself.

    Args:
        place: begins an error's text: "reward_model.data".
        empty: keep answers without a token (cut off before their first).

    Raises:
        UserError: when none is left.
    """
    encoded = []
    for row in rows:
        ids = encode_answers(
            tokenizer, row["messages"], row["answers"], row.get("finished") or None, limit=limit, too_long="drop",
            place=place,
        )  # fmt: skip
        kept = [index for index, answer in enumerate(ids.answers) if answer is not None and (answer or empty)]
        if len({row["ranks"][index] for index in kept}) > 1:
            columns: Row = {"answers": row["answers"], "ranks": row["ranks"], "tokens": ids.rows}
            if "second_ranks" in row:
                columns["second_ranks"] = row["second_ranks"]
            aligned = {name: [column[index] for index in kept] for name, column in columns.items()}
            encoded.append({**row, "prompt": ids.prompt, **aligned})
    if not encoded:
        raise UserError(f"{place}: no ranking has two untied answers of at most {limit} tokens")
    return encoded


def sequences(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) ids of all answers of encoded rankings, in order."""
    return [(row["prompt"], tokens[len(row["prompt"]) :]) for row in rows for tokens in row["tokens"]]


def demonstrations(data: Data | None, tokenizer: Any, limit: int) -> list[list[int]]:
    """The demonstrations of at most `limit` tokens, encoded; none where `data` is None."""
    from gptlife.data.forms import conversations
    from gptlife.data.tokens import encode_conversation

    if data is None:
        return []
    encoded = [encode_conversation(tokenizer, row["messages"])[0] for row in conversations(data)]
    shown = [tokens for tokens in encoded if len(tokens) <= limit]
    if not shown:
        raise UserError(
            f"reward_model.demonstrations: none of {len(encoded)} has at most {limit} tokens; "
            "give shorter ones, or raise max_length"
        )
    return shown
