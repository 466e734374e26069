"""What every rank executes: the instructions, the ops that they name, the copies that they make."""
