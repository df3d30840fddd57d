"""Plain reference implementations, written from the papers and the protocol."""
