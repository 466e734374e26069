"""Sub-dims of every value, views, and ties between repeated layers."""
