"""2. From arrays to text: one Llama, every intermediate named."""
