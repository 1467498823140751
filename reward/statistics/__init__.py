"""Statistics over prompts: win rates with intervals, accuracy, calibration, over-optimisation."""
