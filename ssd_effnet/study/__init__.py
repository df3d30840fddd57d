"""Studies: experiments planned, run, compared and reported."""
