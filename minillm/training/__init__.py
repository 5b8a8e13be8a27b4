"""6. Training: the backward pass, losses, a trainer, and sparse models distilled from dense ones."""
