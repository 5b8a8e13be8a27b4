"""A few stories to train tiny models on."""

STORIES = [
    f"Once upon a time there was a {animal} named {name}. {name} had a red {thing}. One day the {thing} was gone."
    for animal in ("cat", "dog", "bird", "mouse")
    for name in ("Lily", "Tom", "Mia", "Ben", "Sue")
    for thing in ("ball", "hat", "car", "kite")
]
