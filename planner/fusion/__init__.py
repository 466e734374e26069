"""Fused elementwise chains: which ops become one, and what one op made of several does."""
