"""What the online stages (PPO, RLOO) share."""
