"""Predicted beside measured, event by event."""
