"""A program -> its simulated timeline and its memory."""
