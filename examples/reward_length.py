"""A reward in Python instead of a reward model: answers of about forty words are best.

    python examples/own_data.py          # makes the model that is trained here
    python examples/reward_length.py

You learn what a reward function is given and returns, and how a recipe names it: `ppo.reward_function: FILE.py:NAME`.
A judge of `evaluation` has the same shape. The function's file enters the output's address by its content: change the
reward, and PPO is made again.
"""

from pathlib import Path
from typing import Any

WANTED = 40


def score(prompts: list[dict[str, Any]], answers: list[str]) -> list[float]:
    """One finite number per answer, here from -1 to 1; `prompts[i]["messages"]` is what answer i answers."""
    return [1.0 - 2.0 * min(1.0, abs(len(answer.split()) - WANTED) / WANTED) for answer in answers]


def main() -> None:
    """Train with it on the life of own_data.py: everything before PPO is finished and stays."""
    import gptlife

    recipe, store = Path(__file__).with_name("own_data.yaml"), "build/examples/store"
    changes = {"reward_model": None, "ppo.reward_function": f"{__file__}:score", "ppo.steps": 10}
    life = gptlife.run(recipe, changes, store, report="build/examples/reward_length.html")
    for row in life.output("ppo").log:
        print(f"step {row['step']}: score {row['score']:.3f}, {row['length']:.1f} tokens, KL {row['kl']:.2f}")


if __name__ == "__main__":
    main()
