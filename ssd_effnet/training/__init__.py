"""One run: training steps, checkpoints, devices and the run directory."""
