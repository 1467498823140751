"""Evaluation tasks, one file each; `catalogue.py` lists them."""
