"""Rankings as a reward model reads them: loaded, encoded, and as a batch in which a prompt has K rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError
from gptlife.data.sources import Data

if TYPE_CHECKING:
    from torch import Tensor

    from gptlife.stages.dpo import DPOConfig
    from gptlife.stages.modeling.batch import Batch
    from gptlife.stages.reward_model import RewardModelConfig

Row = dict[str, Any]


class Rankings:
    """Rankings as examples: one example is a prompt with its K encoded answers.

    With `shared`, an example is one row: what its answers have in common at the beginning (the prompt) stands there
    once, then what each adds, with an attention mask that keeps the answers apart and with the positions that each
    token has in its own answer. The same scores for a half to a third of the tokens.
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
        inputs, select = _one_row_a_prompt(answers) if self.shared else _one_row_an_answer(answers)
        targets = {
            "ranks": torch.tensor([rank for index in indices for rank in self.rows[index]["ranks"]]),
            "group": torch.tensor([index for index in indices for _ in self.rows[index]["ranks"]]),
        }
        return Batch(inputs, select, targets)


def _one_row_an_answer(answers: Sequence[Sequence[list[int]]]) -> tuple[dict[str, Tensor], Tensor]:
    import torch

    from gptlife.stages.modeling.forward import pad_right
    from gptlife.stages.modeling.scorer import last_positions

    flat, cpu = [tokens for own in answers for tokens in own], torch.device("cpu")
    return {"input_ids": pad_right(flat, 0, cpu)}, last_positions(flat, cpu)


def _one_row_a_prompt(answers: Sequence[Sequence[list[int]]]) -> tuple[dict[str, Tensor], Tensor]:
    """Part 0 of a row is what its answers share, parts 1 to K what each adds; the filling is part -1."""
    import torch

    from gptlife.stages.modeling.forward import pad_right

    cpu = torch.device("cpu")
    rows: dict[str, list[list[int]]] = {"tokens": [], "parts": [], "places": [], "ends": []}
    for own in answers:
        start = _common(own)
        row, parts, places, ends = own[0][:start], [0] * start, list(range(start)), [0] * start
        for number, tokens in enumerate(own, 1):
            added = len(tokens) - start
            row, parts = row + tokens[start:], parts + [number] * added
            places, ends = places + list(range(start, len(tokens))), ends + [0] * (added - 1) + [1]
        for name, column in (("tokens", row), ("parts", parts), ("places", places), ("ends", ends)):
            rows[name].append(column)
    part_BT = pad_right(rows["parts"], -1, cpu)
    shared_or_own_BTT = (part_BT.unsqueeze(1) == 0) | (part_BT.unsqueeze(1) == part_BT.unsqueeze(2))
    inputs = {
        "input_ids": pad_right(rows["tokens"], 0, cpu),
        "position_ids": pad_right(rows["places"], 0, cpu),
        "attention_mask": shared_or_own_BTT.tril().unsqueeze(1),
    }
    return inputs, pad_right(rows["ends"], 0, cpu).bool()


def _common(answers: Sequence[list[int]]) -> int:
    """How many tokens all answers begin with alike, less one where that would be all of the shortest."""
    shortest = min(len(tokens) for tokens in answers)
    first = answers[0]
    alike = next((i for i in range(shortest) if any(tokens[i] != first[i] for tokens in answers)), shortest)
    return min(alike, shortest - 1)


def sharing_is_exact(reader: Any, rows: Sequence[Row]) -> bool:
    """Whether a model gives `rows` the same scores either way: it takes a mask and positions, and heeds them."""
    import torch

    device = next(reader.parameters()).device
    plain, shared = (Rankings(rows, how).collate(range(len(rows))).to(device) for how in (False, True))
    try:
        with torch.no_grad():
            one, two = (reader(batch.inputs, batch.select) for batch in (plain, shared))
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(torch.allclose(one, two, atol=1e-4, rtol=1e-4))


def load(config: RewardModelConfig, comparisons: Sequence[Path]) -> dict[str, list[Row]]:
    """Rankings to train on (`data`), those held out (`validation`), and `test` where the config has it.

    Raises:
        UserError: when there are none, or fewer than `config.rankings`.
    """
    from gptlife.data.formats import rankings

    found, held_out = train_and_held_out(config, comparisons, "reward_model")
    if config.rankings is not None and config.rankings > len(found):
        raise UserError(f"reward_model.rankings: {config.rankings} wanted, but there are {len(found)}; lower it")
    parts = {"data": found[: config.rankings], "validation": held_out}
    return parts if config.test is None else {**parts, "test": rankings(config.test, config.seed)}


def train_and_held_out(
    config: RewardModelConfig | DPOConfig, comparisons: Sequence[Path], place: str
) -> tuple[list[Row], list[Row]]:
    """The rankings of a config's own data, or of outputs of `comparisons` (the rounds so far, taken together).

    Raises:
        UserError: when there are none; `place` is the stage's name in it.
    """
    from gptlife.data.formats import rankings
    from gptlife.data.splits import split

    if config.data is None and not comparisons:
        raise UserError(f"{place}.data: no rankings; give `data`, or the input `comparisons`")
    if config.data is None:
        train, held_out = (
            [row for folder in comparisons for row in _read(folder / f"{name}.jsonl")]
            for name in ("train", "validation")
        )
        return train, held_out
    if isinstance(config.validation, float):
        return split(rankings(config.data, config.seed), config.validation, f"{place}.validation")
    return rankings(config.data, config.seed), rankings(config.validation, config.seed)


def _read(path: Path) -> list[Row]:
    """The rankings that the stage `comparisons` wrote."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no rankings can be read ({error}); run the stage `comparisons` again") from None


def encode(rows: Sequence[Row], tokenizer: Any, limit: int, place: str) -> list[Row]:
    """Rankings with `tokens`: each answer after its prompt, end-of-text at the end where the answer has one."""
    from gptlife.data.tokens import encode_answer, encode_prompt

    encoded = []
    for row in rows:
        prompt = encode_prompt(tokenizer, row["messages"])
        ended = row.get("finished") or [True] * len(row["answers"])
        answers = [
            prompt + encode_answer(tokenizer, text, done) for text, done in zip(row["answers"], ended, strict=True)
        ]
        kept = [index for index, tokens in enumerate(answers) if len(tokens) <= limit]
        if len({row["ranks"][index] for index in kept}) > 1:
            columns: Row = {"answers": row["answers"], "ranks": row["ranks"], "tokens": answers}
            if "second_ranks" in row:
                columns["second_ranks"] = row["second_ranks"]
            encoded.append({**row, **{name: [column[index] for index in kept] for name, column in columns.items()}})
    if not encoded:
        raise UserError(f"reward_model.{place}: no ranking has two untied answers of at most {limit} tokens")
    return encoded


def demonstrations(data: Data | None, tokenizer: Any, limit: int) -> list[list[int]]:
    """The demonstrations of at most `limit` tokens, encoded; none where `data` is None."""
    from gptlife.data.formats import conversations
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
