"""Compares predicted with measured, event by event."""
