"""Schedules of pipelines as data: named, read, checked, timed, found. Knows actions, no graphs."""
