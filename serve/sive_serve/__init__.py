"""What listens: `sive serve`, its engine, and the command line."""
