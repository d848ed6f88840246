"""Sites: the places in a model where the learner sits, and what it does around one call of a module."""
