"""What the learner promises, one promise a file. Exactness of the gradients themselves is proven next door."""
