"""Speed: measured in turns, as ratios within one run."""
