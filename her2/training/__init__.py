"""Parts shared by all trainings: epochs, checkpoints, the learning rate, prefetched batches."""
