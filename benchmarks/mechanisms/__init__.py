"""The mechanisms of the supplement's Table 5 behind one interface; see `docs/mechanisms.md`."""
