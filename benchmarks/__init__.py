"""Measures the figures that README promises, and writes them there."""
