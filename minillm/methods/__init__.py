"""Chapter 7. Related methods: each is one file with a function ``fit``, which gives a Variant of the model."""
