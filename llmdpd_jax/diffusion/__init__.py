"""Diffusion over actions: noise schedules, what the network predicts, samplers, guidance. Knows nothing of RL."""
