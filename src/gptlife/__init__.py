"""gptlife: the full life of a GPT, from raw text to PPO-ptx. The public names of the library are here."""

__version__ = "0.2.0.dev0"
