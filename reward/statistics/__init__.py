"""Intervals, calibration and fits: statistics over prompts."""
