"""What every training shares: options, devices and processes, checkpoints, log."""
