"""Read a finished life: configs, metrics, logs, lineage and models, and plot what PPO did.

    python examples/own_data.py          # makes the life that is read here
    python examples/read_a_life.py [RECIPE] [STORE]

You learn `open_output`: an address, a directory, or `recipe:step` gives the files of an output as Python values. Only
`model()` and `tokenizer()` import torch.
"""

import sys
from pathlib import Path

import gptlife

PLOT = Path("build/examples/ppo.svg")


def lineage(output: gptlife.Output, store: str) -> list[str]:
    """The addresses of all that an output was made from, itself first."""
    addresses = [output.path.name]
    for address in output.manifest["inputs"].values():
        addresses += [a for a in lineage(gptlife.open_output(address, store), store) if a not in addresses]
    return addresses


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Score and KL over PPO's steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("score", "kl"), strict=True):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows])
        axes.set(xlabel="step", title=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(recipe: str = "own_data", store: str = "build/examples/store") -> None:
    """Print, plot, and ask the model something."""
    ppo = gptlife.open_output(f"{recipe}:ppo", store)
    print("made from  ", *lineage(ppo, store))
    print("config     ", {name: ppo.config[name] for name in ("steps", "kl_coef", "learning_rate")})
    print("metrics    ", {name: ppo.metrics[name] for name in ("score", "kl", "length", "algorithm")})
    print("made in    ", ppo.manifest["seconds"], "s, by torch", ppo.manifest["versions"]["torch"])
    plot(ppo.log, PLOT)
    print("plot       ", PLOT)

    model, tokenizer = ppo.model(), ppo.tokenizer()
    chat = [{"role": "user", "content": "What does Anna have?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    print("answer     ", tokenizer.decode(answer, skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
