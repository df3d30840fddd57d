"""A trained detector at work: prediction, images and videos, export."""
