"""Choices -> a program, in the order in which it runs."""
