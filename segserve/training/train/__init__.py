"""Training: recipe, batches, loss, loop, checkpoints and the finished model folder."""
