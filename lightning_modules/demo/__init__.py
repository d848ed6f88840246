"""``stllr demo``: a small network trained on built-in data, one look inside it, and a picture of both."""
