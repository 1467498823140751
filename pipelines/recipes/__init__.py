"""Shipped recipes: one YAML file a life, with its cost, hardware and expected result in the header."""
