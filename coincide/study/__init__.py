"""Runs side by side, and the premise of the method, measured."""
