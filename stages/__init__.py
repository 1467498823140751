"""The loops: one file per stage of a model's life, each with its config and its `run()`.

Importing a stage is cheap; `run()` imports torch. A script's own folder comes first on `sys.path`, so no file
here may carry the name of an installed distribution.
"""
