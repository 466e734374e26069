"""The options of every op and parameter, their costs on a mesh, and the problem made of them."""
