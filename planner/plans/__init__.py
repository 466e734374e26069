"""The plan file: written, read, made a program again, and put in words."""
