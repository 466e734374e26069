"""A schedule found for given times and memory, with a bound on all schedules."""
