"""Text and tokens: sources, formats, tokenizer, chat template, packing, and the Village.

The lowest of the four rooms: it imports nothing from `reward`, `stages` or `pipelines`.
"""
