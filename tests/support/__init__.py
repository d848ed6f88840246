"""The support matrix: what is claimed of each class of the neuron libraries, and the checks behind it."""
