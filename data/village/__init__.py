"""The Village: a small procedural world with ground truth, and every kind of data a GPT's life needs from it."""
