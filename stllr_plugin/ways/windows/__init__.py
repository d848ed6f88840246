"""Several time steps at once: what stands in for the modules, and whether a model can run so."""
