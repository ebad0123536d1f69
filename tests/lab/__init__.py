"""The lab: small honest programs that speak the real protocols, well or badly."""
