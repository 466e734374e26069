"""Lower bounds: message passing, prices on memory, the local polytope."""
