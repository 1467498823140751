"""Several sampled answers per prompt, in chunks that are saved as they finish; for comparisons and best of n.

A chunk is some prompts with all their answers, divided among the processes. The random numbers behind an answer are a
function of the seed, the prompt's number and the answer's, so neither chunks nor processes change what is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from gptlife.stages.generation.sampler import answer_rows
from gptlife.stages.runtime.artifact import CHECKPOINTS
from gptlife.stages.runtime.files import keep_piece, kept_by_all

Row = dict[str, Any]
ANSWERS_MAX = 1000
"""Most answers per prompt: a prompt's answers are numbered from its own number times this."""


def in_chunks(
    accelerator: Accelerator, output: Path, name: str, n_prompts: int, chunk: int, make: Callable[[int], list[Row]]
) -> Iterator[list[Row]]:
    """The rows of every chunk of `chunk` prompts in order: those saved under `output`, or `make(first prompt)`."""
    for number, start in enumerate(range(0, n_prompts, chunk)):
        path = output / CHECKPOINTS / f"{name}-{number:06d}-of-{chunk}.json"
        part = kept_by_all(accelerator, path)
        if part is None:
            part = make(start)
            if accelerator.is_main_process:
                keep_piece(path, part)
            accelerator.wait_for_everyone()
        yield part


def sample_answers(
    accelerator: Accelerator,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Row],
    counts: Mapping[int, int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: str,
    generation_batch_size: int,
    place: str,
) -> list[Row]:
    """The prompts of `counts` with `answers` and `finished`, in order.

    Every process samples its share and gets all rows.

    Args:
        counts: how many answers (at most `ANSWERS_MAX`) the prompt of each number gets.
        place: the config field of the prompts, for errors.

    Raises:
        UserError: when a prompt leaves no room for `max_new_tokens` in the model's context.
    """
    wanted = [(index, index * ANSWERS_MAX + k) for index, count in counts.items() for k in range(count)]
    mine = wanted[accelerator.process_index :: accelerator.num_processes]
    sampled = answer_rows(
        model,
        tokenizer,
        [prompts[index] for index, _ in mine],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        numbers=[number for _, number in mine],
        generation_batch_size=generation_batch_size,
        place=place,
    )
    pieces = [(number, index, text, ended) for (index, number), (text, ended) in zip(mine, sampled, strict=True)]
    if accelerator.num_processes > 1:
        pieces = gather_object(pieces)
    rows: dict[int, Row] = {index: {**prompts[index], "answers": [], "finished": []} for index in counts}
    for _, index, text, ended in sorted(pieces):
        rows[index]["answers"].append(text)
        rows[index]["finished"].append(ended)
    return list(rows.values())
