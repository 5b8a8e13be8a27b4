"""minillm: activation sparsity in large language models, in pure NumPy."""
