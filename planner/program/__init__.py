"""What every rank executes: the instructions, the ops that they name, what they copy."""
