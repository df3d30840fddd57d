"""Speed of each stage against a plain reference and the machine's limit."""
