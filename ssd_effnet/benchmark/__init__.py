"""How fast each stage is on the machine at hand: against the plain way of doing it, and against the machine's limit."""
