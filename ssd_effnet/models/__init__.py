"""Part by part: each file is one part of the detector and imports none of the others."""
