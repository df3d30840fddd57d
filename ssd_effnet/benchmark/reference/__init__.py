"""The plain way of doing each stage's work, written from the papers and the protocol: what is compared with."""
