"""2. From arrays to text: a language model whose every intermediate has a name."""
