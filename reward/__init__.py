"""The mathematics: every formula of RLHF as a pure function over tensors, the reward model, the judges."""
