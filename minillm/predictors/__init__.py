"""4. Predicting: which neurons a token will need, said before they are computed."""
