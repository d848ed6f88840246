"""Responses: what a neuron did in K time steps, and how gradients of its membrane and outputs go back through it."""
