"""Pictures and pages: galleries of errors, features, data, graphs."""
