"""Choices -> a program, in its final order."""
