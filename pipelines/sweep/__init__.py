"""`gptlife sweep`: a recipe over a grid of values; its schedule, its table, its plot and its page."""
