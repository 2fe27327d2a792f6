"""What every training here shares: epochs, checkpoints, the learning rate, batches made ahead."""
