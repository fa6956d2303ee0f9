"""What every op folder shares: argument checks, registration, dispatch, launch configurations, Triton helpers."""
