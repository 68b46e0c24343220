"""Spherical k-means over activations (paper section 3.2)."""
