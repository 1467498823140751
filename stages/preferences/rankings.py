"""Rankings as preference stages read them: loaded, encoded, and as a batch in which a prompt has K rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.answers import encode_answers
from gptlife.data.errors import UserError
from gptlife.data.readers import read_jsonl
from gptlife.data.sources import Data
from gptlife.data.tokens import Encoded
from gptlife.stages.preferences.config import refuse_nothing

if TYPE_CHECKING:
    from gptlife.stages.modeling.forward import Batch

Row = dict[str, Any]


class Rankings:
    """Rankings as examples: one example is a prompt with its K encoded answers.

    With `shared`, an example is one row: the beginning that its answers share (the prompt) once, then what each answer
    adds, with an attention mask that keeps the answers apart and with each token's position in its own answer. The
    same scores for a half to a third of the tokens.
    """

    def __init__(self, rows: Sequence[Row], shared: bool = False) -> None:
        from gptlife.stages.modeling.forward import shared_length

        self.rows, self.shared = rows, shared
        # What one example costs in a forward pass: its one row, or K rows as wide as the longest.
        self.lengths = [
            sum(map(len, group)) - (len(group) - 1) * shared_length(group)
            if shared
            else len(group) * max(map(len, group))
            for group in (row["encoded"] for row in rows)
        ]
        self.weights = [1.0] * len(rows)

    def collate(self, indices: Sequence[int]) -> Batch:
        """The answers of all the prompts, in order, read at their last token; targets `ranks` (N,) and `group` (N,).

        `input_ids` are (N, T), or if `shared` (B, T), with `position_ids` (B, T) and a bool `attention_mask`
        (B, 1, T, T).
        """
        import torch

        from gptlife.stages.modeling.forward import CPU, Batch, inputs_of, last_positions, shared_inputs

        rows = [self.rows[index] for index in indices]
        if self.shared:
            inputs, select = shared_inputs([row["encoded"] for row in rows], CPU)
        else:
            answers = answers_of(rows)
            inputs, select = inputs_of(answers, CPU), last_positions(answers, CPU)
        targets = {
            "ranks": torch.tensor([rank for row in rows for rank in row["ranks"]]),
            "group": torch.tensor([index for index in indices for _ in self.rows[index]["ranks"]]),
        }
        return Batch(inputs, select, targets)


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
    refuse_nothing(stage, data, outputs)
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

    Each gets `encoded`: for each answer the prompt and the answer behind it, with end-of-text where it ended by itself.

    Args:
        place: begins an error's text: "reward_model.data".
        empty: keep answers without a token (cut off before their first).

    Raises:
        UserError: when none is left.
    """
    encoded = []
    for row in rows:
        answers = encode_answers(
            tokenizer, row["messages"], row["answers"], row.get("finished") or None, limit=limit, too_long="drop",
            place=place,
        )  # fmt: skip
        kept = [index for index, answer in enumerate(answers) if answer is not None and (empty or any(answer.marks))]
        if len({row["ranks"][index] for index in kept}) > 1:
            columns: Row = {"answers": row["answers"], "ranks": row["ranks"], "encoded": answers}
            if "second_ranks" in row:
                columns["second_ranks"] = row["second_ranks"]
            aligned = {name: [column[index] for index in kept] for name, column in columns.items()}
            encoded.append({**row, **aligned})
    if not encoded:
        raise UserError(f"{place}: no ranking has two untied answers of at most {limit} tokens")
    return encoded


def answers_of(rows: Sequence[Row]) -> list[Encoded]:
    """All answers of encoded rankings, each behind its prompt, in order."""
    return [answer for row in rows for answer in row["encoded"]]


def demonstrations(data: Data | None, tokenizer: Any, limit: int) -> list[Encoded]:
    """The demonstrations of at most `limit` tokens, encoded; none where `data` is None."""
    from gptlife.data.forms import conversations
    from gptlife.data.tokens import encode_conversation

    if data is None:
        return []
    encoded = [encode_conversation(tokenizer, row["messages"]) for row in conversations(data)]
    shown = [row for row in encoded if len(row) <= limit]
    if not shown:
        raise UserError(
            f"reward_model.demonstrations: none of {len(encoded)} has at most {limit} tokens; "
            "give shorter ones, or raise max_length"
        )
    return shown
