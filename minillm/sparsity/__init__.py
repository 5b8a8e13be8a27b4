"""3. Cutting: which activations are set to zero, where the thresholds come from, what is saved."""
