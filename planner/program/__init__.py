"""The program of every rank: its instructions, the ops that they name, the copies around them."""
