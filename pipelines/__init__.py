"""The chain and its memory: wiring, store, planner, command line, report. Planning imports no torch."""
