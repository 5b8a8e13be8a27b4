"""The course's tools: checks of exercises, grading, what notebooks share."""
