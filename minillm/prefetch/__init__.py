"""5. Fetching: neurons in bundles on disk, a small buffer in fast memory, and only what is needed brought in."""
