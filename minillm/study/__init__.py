"""6. Studying: sweeps, tables, benchmarks."""
