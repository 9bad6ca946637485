"""What a run leaves on disk: its folder, its vectors, and the log that it goes on from."""
