"""What the training stages share: config, schedule, loop, checkpoints, language-model loss."""
