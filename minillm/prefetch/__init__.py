"""5. Fetching: neurons lie in bundles on disk, a small buffer is in fast memory, and only needed neurons are read."""
