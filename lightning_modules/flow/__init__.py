"""Optical flow: batches, warping, losses, metrics and pictures."""
