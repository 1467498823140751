"""What the stage `evaluation` is made of."""
