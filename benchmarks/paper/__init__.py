"""What reproduces the paper: its tables and figures, and the models beside its own that they need."""
