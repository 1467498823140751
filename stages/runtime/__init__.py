"""The ground under every stage: what a stage is, its output directory, signals, log, device, trust."""
