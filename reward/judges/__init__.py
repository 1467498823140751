"""Judges, which score answers or compare two of them, and labelers, which rank several."""
