"""Measures this machine into a hardware file."""
