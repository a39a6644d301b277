"""What travels to the device. Needs NumPy and the standard library, nothing else of ours."""
