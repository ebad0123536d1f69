"""The CPU model: the last rung, which answers with no network, no GPU and no configuration."""
