"""Data for optical flow: recordings cut into windows, loaded as parallel lanes."""
