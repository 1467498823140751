"""The mathematics: every formula of RLHF as a pure function over tensors; judges and labelers; statistics."""
