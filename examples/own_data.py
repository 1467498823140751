"""Your own data: from a folder of files to a model that PPO has trained.

    python examples/own_data.py

You learn which files the stages read, how a recipe names them, that planning is free, and that what is finished is not
made again. `write_data` stands for your files; the recipe is own_data.yaml beside this script.
"""

import csv
import json
import random
from pathlib import Path

import gptlife

RECIPE = Path(__file__).with_name("own_data.yaml")
DATA = Path("build/examples/data")
STORE = Path("build/examples/store")
NAMES = ("Anna", "Bert", "Cleo", "Dora", "Emil", "Fred", "Gina", "Hugo")
THINGS = ("hat", "cup", "cat", "dog", "book", "boat")
COLOURS = ("red", "blue", "green", "grey")
VERBS = ("have", "see", "want")


def page(rng: random.Random) -> str:
    """Four sentences."""
    return " ".join(f"{rng.choice(NAMES)} has a {rng.choice(COLOURS)} {rng.choice(THINGS)}." for _ in range(4))


def write_data(folder: Path) -> None:
    """Pages as text, conversations and prompts as JSON lines, preferences as CSV with column names of its own."""
    rng = random.Random(0)
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    for number in range(100):
        (folder / "pages" / f"{number:03}.txt").write_text(page(rng), encoding="utf-8")
    asked = [(f"What does {name} have?", f"A {rng.choice(COLOURS)} {thing}.") for name in NAMES for thing in THINGS]
    write_rows(folder / "held_out.jsonl", [{"text": page(rng)} for _ in range(10)])
    write_rows(folder / "chat.jsonl", [{"prompt": question, "completion": answer} for question, answer in asked])
    write_rows(folder / "prompts.jsonl", [{"prompt": f"What does {name} {verb}?"} for name in NAMES for verb in VERBS])
    with (folder / "preferences.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "better", "worse"])
        rows.writerows([question, answer, "No."] for question, answer in asked)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """JSON lines: one object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Plan, run, and look at what came out."""
    write_data(DATA)
    for step in gptlife.plan(RECIPE, store=STORE):
        print(f"{step.name:<14} {step.state:<8} {step.address}")
    # The same as: gptlife run examples/own_data.yaml --store build/examples/store
    life = gptlife.run(RECIPE, store=STORE)
    assert life.done
    accuracy, kl = life.output("reward_model").metrics["accuracy"], life.output("ppo").metrics["kl"]
    print(f"reward model right in {accuracy:.0%} of the pairs; PPO went {kl:.2f} nats from the SFT policy")
    # Another KL coefficient moves PPO's address and no other: only PPO would be made.
    other = gptlife.plan(RECIPE, {"ppo.kl_coef": 0.2}, store=STORE)
    print("with ppo.kl_coef=0.2, to do:", *(step.name for step in other if step.state != "done"))


if __name__ == "__main__":
    main()
